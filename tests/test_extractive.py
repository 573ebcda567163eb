from dataclasses import replace

import numpy as np
import pytest

from compmem.loop.loop import _within_budget
from compmem.readers import NOTHING_FOUND, ExtractiveReader
from compmem.readers.extractive import LINKED_BONUS, NAMED_BONUS
from compmem.readers.identifiers import IdentifierLinks, identifiers
from compmem.readers.outline import Outline, Outlines
from compmem.readers.quoting import quoted_sentences
from compmem.retrieval.query import QueryAnalyzer
from compmem.schema import Chunk, Evidence, MemoryBlock, WorkingMemory
from compmem.text.tokenize import content_terms, root
from tests.hashing import HashEncoder
from tests.test_gate import QUESTION, StubIndex


def block(title, *sentences):
    text = " ".join(sentences)
    spans, at = [], 0
    for s in sentences:
        spans.append((at, at + len(s)))
        at += len(s) + 1
    chunk = Chunk(text=text, title=title, document_id=title, sentences=tuple(spans))
    return MemoryBlock(chunk=chunk, vectors=HashEncoder().encode([text, *sentences]))


ACME = block("Acme", "It was founded long ago.", "Acme rents the Harbour Building.", "It makes rockets.", "It is big.")
HARBOUR = block("Harbour Building", "The Harbour Building is insured by Lloyd.", "It was built in 1920.")
ZOO = block("Zoo", "Animals live there.")


def reader():
    return ExtractiveReader(QueryAnalyzer(QUESTION, HashEncoder(), StubIndex()))


def test_it_keeps_sentences_of_the_text_with_what_they_are_about():
    reading = reader().read(QUESTION, WorkingMemory(), [ACME])
    assert reading.update
    assert "Acme: Acme rents the Harbour Building." in reading.memory.text.split("\n")
    for kept in reading.memory.evidence:
        assert ACME.chunk.text[kept.start : kept.end] == kept.text
        assert 0 <= kept.score <= 1


def test_a_block_that_does_not_bear_on_the_question_closes_the_update_gate():
    assert not reader().read(QUESTION, WorkingMemory(), [ZOO]).update


def test_several_blocks_at_once_are_the_blocks_one_after_another():
    one = reader()
    together = one.read(QUESTION, WorkingMemory(), [ACME, HARBOUR]).memory
    first = one.read(QUESTION, WorkingMemory(), [ACME]).memory
    after = one.read(QUESTION, first, [HARBOUR]).memory
    assert set(together.text.split("\n")) == set(after.text.split("\n"))


def test_reading_a_block_again_adds_nothing():
    one = reader()
    memory = one.read(QUESTION, WorkingMemory(), [ACME]).memory
    again = one.read(QUESTION, memory, [ACME])
    assert again.memory.text == memory.text
    assert not again.update
    assert not again.exit


def test_the_answer_quotes_the_best_sentence_of_each_source():
    one = reader()
    memory = one.read(QUESTION, WorkingMemory(), [ACME, HARBOUR]).memory
    text = "".join(p for p in one.write(QUESTION, memory) if isinstance(p, str))
    assert text == "Acme rents the Harbour Building. The Harbour Building is insured by Lloyd."
    assert list(one.write(QUESTION, WorkingMemory())) == [NOTHING_FOUND]


def test_a_block_of_one_vector_is_read_as_a_whole():
    whole = MemoryBlock(chunk=Chunk(text="Acme rents."), vectors=np.asarray(HashEncoder().encode(["Acme rents."])))
    assert reader().read(QUESTION, WorkingMemory(), [whole]).memory.evidence[0].text == "Acme rents."


def test_all_answers_of_a_list_are_quoted_and_only_those():
    codes = [block(f"Note {n}", f"The code of the vault is {n}{n}{n}.") for n in range(1, 7)]
    asked = ExtractiveReader(QueryAnalyzer("What are the codes of the vault?", HashEncoder(), StubIndex()))
    memory = WorkingMemory()
    for one in [*codes, ZOO, ACME]:
        reading = asked.read("", memory, [one])
        assert not reading.exit
        memory = reading.memory
    answer = "".join(asked.write("", memory))
    assert [f"{n}{n}{n}" in answer for n in range(1, 7)] == [True] * 6
    assert "Animals" not in answer
    assert "rockets" not in answer


def test_each_name_of_a_list_is_quoted_though_one_is_worded_otherwise():
    said = [
        "The codes of oak and birch are 111.", "The code of elm is 222.", "The code of ash is 333.",
        "Keep in mind that fir has the code 444.",
    ]  # fmt: skip
    asked = ExtractiveReader(QueryAnalyzer("What are the codes of oak, elm, ash and fir?", HashEncoder(), StubIndex()))
    memory = asked.read("", WorkingMemory(), [block(f"Note {n}", text) for n, text in enumerate(said)]).memory
    answer = "".join(asked.write("", memory))
    assert [code for code in ("111", "222", "333", "444") if code in answer] == ["111", "222", "333", "444"]


def written(question, *blocks):
    one = ExtractiveReader(QueryAnalyzer(question, HashEncoder(), StubIndex()))
    return "".join(one.write(question, one.read(question, WorkingMemory(), blocks).memory))


def test_a_sentence_of_a_quoted_chunk_with_missing_words_of_the_question_is_added():
    both = block(
        "", "Acme rents the Harbour Building.", "It makes rockets.", "The Harbour Building is insured by Lloyd."
    )
    assert written(QUESTION, both) == "Acme rents the Harbour Building. The Harbour Building is insured by Lloyd."


def test_missing_words_add_no_sentence_that_shares_no_further_word():
    apart = block("", "Acme rents the Harbour Building.", "It makes rockets.", "A ship is insured by Lloyd.")
    assert written(QUESTION, apart) == "Acme rents the Harbour Building. It makes rockets."


def test_a_sentence_that_is_nearly_as_good_as_the_best_of_its_chunk_is_quoted_too():
    said = (
        "Grades are reviewed by the committee on pay.", "The committee is chaired by Beate Falk for reviews of grades.",
        "Coffee is free.",
    )  # fmt: skip
    assert written("Who chairs the committee that reviews grades?", block("", *said)) == " ".join(said[:2])


def of_text(text, *, sentences):
    """A block of a text with line breaks, whose sentences are given."""
    at, spans = 0, []
    for sentence in sentences:
        at = text.index(sentence, at)
        spans.append((at, at + len(sentence)))
    chunk = Chunk(text=text, document_id="text", sentences=tuple(spans))
    return MemoryBlock(chunk=chunk, vectors=HashEncoder().encode([text, *sentences]))


FAQ = of_text(
    "Q: Can I return shoes?\nA: Yes.\nYou have 30 days.\n\nMore is in our terms.\n\nQ: Do you ship abroad?\nA: No.",
    sentences=[
        "Q: Can I return shoes?", "A: Yes.", "You have 30 days.", "More is in our terms.", "Q: Do you ship abroad?",
        "A: No.",
    ],
)  # fmt: skip


def test_a_question_in_the_text_is_quoted_with_its_answer():
    assert written("Can I return shoes?", FAQ) == "Q: Can I return shoes? A: Yes. You have 30 days."
    assert written("Do you ship abroad?", FAQ) == "Q: Do you ship abroad? A: No."


def test_a_heading_or_a_colon_is_quoted_with_what_it_introduces():
    headed = block("", "Cats sleep.", "## Opening hours", "Opening hours:", "- Monday: 9 to 5", "- Sunday: closed")
    assert written("What are the opening hours?", headed) == ("Opening hours:\n- Monday: 9 to 5\n- Sunday: closed")
    code = block("", "def area(self):", "return self.width", "def volume(self):", "return self.area() * self.height")
    assert written("What does volume call?", code) == "def volume(self): return self.area() * self.height"
    settings = block("", '"server": {', '"port": 8443', "},", '"retries": {', '"max": 7', "}")
    assert written("How many retries are there?", settings).startswith('"retries": { "max": 7')


def test_a_memory_cut_to_its_budget_keeps_its_end_and_the_best_evidence():
    lease = block("Lease", "Acme leases\n  the Harbour Building.", "Zoo animals sing.")
    memory = reader().read(QUESTION, WorkingMemory(), [ACME, HARBOUR, lease]).memory
    assert _within_budget(memory, len(memory.text), len) == memory
    ranked = sorted(memory.evidence, key=lambda e: -e.score)
    for kept in range(1, len(ranked)):
        cut = _within_budget(memory, sum(len(e.text) for e in ranked[:kept]), len)
        assert memory.text.endswith(cut.text)
        assert sorted(cut.evidence, key=lambda e: -e.score) == ranked[:kept]
        assert [e for e in memory.evidence if e in cut.evidence] == list(cut.evidence)
    assert _within_budget(memory, 1, len).evidence == (ranked[0],), "though it was read first"
    assert ranked[0].chunk == ACME.chunk


def levels(*sentences):
    return Outline.of(block("", *sentences).chunk).levels


def test_a_sentence_with_a_number_sign_or_a_bold_word_is_no_heading():
    told = ["#1 of the list is Acme", "**Acme** rents the mill"]
    assert not any(levels(*told, "**Acme rents the mill.**", "plain"))
    assert levels("# Rent", "### Rent of Acme", "**Rent**") == (1, 3, 7)


def test_a_list_is_quoted_whole_and_an_item_under_what_introduces_it():
    items = [f"- Thing {n}" for n in range(1, 8)]
    listed = of_text("\n".join(["Bring the following:", *items]) + "\n\nRain fell.", sentences=[
        "Bring the following:", *items, "Rain fell."
    ])  # fmt: skip
    assert written("What should I bring?", listed) == "\n".join(["Bring the following:", *items])
    log = block("", "## 2.3.0", "- Added dark mode.", "## 2.2.0", "- Removed the old menu.")
    assert written("Which version added dark mode?", log) == "2.3.0:\n- Added dark mode."


def test_words_of_a_heading_count_for_what_is_under_it():
    hours = block("Shops Lyon", "# Shops", "## Lyon", "Monday: 9 to 6", "**Nice**", "Tuesday: 10 to 5")
    assert written("When is Lyon open?", hours) == "Shops › Lyon:\nMonday: 9 to 6"
    assert written("When is Nice open?", hours) == "Shops › Lyon › Nice:\nTuesday: 10 to 5"


def test_yes_or_no_is_quoted_with_its_question():
    asked = of_text("## Do you ship to Norway?\n\nNo. We ship to France.", sentences=[
        "## Do you ship to Norway?", "No.", "We ship to France."
    ])  # fmt: skip
    assert written("To which countries do you ship?", asked) == "Do you ship to Norway? No. We ship to France."


def test_a_pronoun_is_quoted_with_the_sentence_that_names_whom_it_means():
    team = ["Maria Lopez leads a team.", "She joined in 2012.", "Before that she worked at Initech.", "Rain fell."]
    assert written("Who worked at Initech?", block("", *team)) == " ".join(team[:3])
    apart = of_text(
        "Maria Lopez leads a team.\n\nShe worked at Initech.", sentences=[team[0], "She worked at Initech."]
    )
    assert written("Who worked at Initech?", apart) == "She worked at Initech."


def test_a_row_of_a_table_is_quoted_with_its_head_and_the_rows_that_answer_too():
    head, lines, oslo, malmo, bergen = (
        "| City | Country |", "|---|---|", "| Oslo | Norway |", "| Malmo | Sweden |", "| Bergen | Norway |"
    )  # fmt: skip
    table = of_text("\n".join(["Some facts.", head, lines, oslo, malmo, bergen]), sentences=[
        "Some facts.", head, lines, oslo, malmo, bergen
    ])  # fmt: skip
    assert written("Which cities are in Norway?", table) == f"{head}\n{oslo}\n{bergen}"
    assert written("Which country is Malmo in?", table) == f"{head}\n{malmo}"
    assert written("Every city and country?", table) == f"{head}\n{oslo}\n{malmo}\n{bergen}"
    kept = Evidence.of(table.chunk, table.chunk.sentences[1], 0.4)
    for asked, rows in (("rent", [oslo, malmo, bergen]), ("citi", [oslo, malmo, bergen]), ("norwa", [oslo, bergen])):
        assert [e.text for e in quoted_sentences({asked: 1.0}, [kept], Outlines())] == [head, *rows], asked
    days = [f"| {day} | {hour} |" for day, hour in (("Monday", "9 to 17"), ("Friday", "9 to 13"))]
    hours = of_text("\n".join(["| Day | Open |", *days]), sentences=["| Day | Open |", *days])
    chosen = Evidence.of(hours.chunk, hours.chunk.sentences[1], 0.4)
    assert [e.text for e in quoted_sentences({"office": 1.0}, [chosen], Outlines())] == ["| Day | Open |", *days]
    head, *rows = "City,Country,Mayor", "Oslo,Norway,Berg", "Malmo,Sweden,Lund"
    values = of_text("\n".join([head, *rows]), sentences=[head, *rows])
    assert written("Which country is Malmo in?", values) == f"{head}\n{rows[1]}"
    later = of_text("\n".join(rows), sentences=rows)
    later = replace(later, chunk=replace(later.chunk, headings=(head,)))
    assert written("Which country is Malmo in?", later) == rows[1]


def test_a_heading_is_quoted_with_the_whole_table_below_it():
    head, lines, rows = "| Model | Price |", "|---|---|", [f"| P{n}00 | {n}5 |" for n in range(1, 6)]
    table = of_text("\n".join(["# Our pumps", "", head, lines, *rows]), sentences=["# Our pumps", head, lines, *rows])
    assert written("Which are our pumps?", table) == "\n".join(["Our pumps:", head, *rows])


def test_a_row_that_is_added_for_a_missing_word_has_its_head():
    head, lines, pump, valve = "| Model | Kind |", "|---|---|", "| Borva | pump |", "| Damar | valve |"
    text = "The pump Celda has a steel housing and a filter."
    table = of_text("\n".join([head, lines, pump, valve, "", text]), sentences=[head, lines, pump, valve, text])
    said = written("Does Borva have a steel housing and a filter as Celda has?", table)
    assert said == f"{head}\n{pump}\n{text}"


def test_names_of_all_scripts_link_sentences():
    def line(text):
        return block("", text, "It is cold.")

    for name in ("Łukasz Żak", "Иван Петров", "Ömer Çelik"):
        memory = WorkingMemory(text=f"The lease was signed by {name}.")
        plain, linked = (
            reader().read("Who signed?", known, [line(f"{name} lives in Oslo.")]).memory.evidence[0].score
            for known in (WorkingMemory(text="The lease was signed."), memory)
        )
        assert linked > plain, name


def test_a_document_whose_title_was_named_is_the_next_hop():
    def scores(question, first):
        one = ExtractiveReader(QueryAnalyzer(question, HashEncoder(), StubIndex()))
        read = one.read(question, WorkingMemory(), [first]).memory
        return {e.text: e.score for e in one.read(question, read, [firm]).memory.evidence if e.chunk is firm.chunk}

    firm = block("Borva Pumps (firm)", "The phone number is 4711.", "It has two halls.")
    named, other = (
        block("Parts", "Spare parts are sold by Borva Pumps."),
        block("Parts", "Spare parts are sold by Celda."),
    )
    question = "Who sells spare parts?"
    after = scores(question, other)
    assert scores(question, named) == {text: pytest.approx(score + NAMED_BONUS) for text, score in after.items()}
    asked = "Who sells spare parts to Borva Pumps?"
    assert scores(asked, named) == scores(asked, other), "the question names it itself"
    assert (
        scores(question, replace(named, chunk=replace(named.chunk, document_id=firm.chunk.document_id, ordinal=1)))
        == after
    )


def by_words(number, *sentences):
    """A block whose vectors are like no question: only its words count."""
    found = block(number, *sentences)
    return replace(found, vectors=np.zeros_like(found.vectors))


CHAIN = [
    by_words("1", "RUBY = 48213.", "The wind is mild."), by_words("2", "TOPAZ = RUBY.", "The road is long."),
    by_words("3", "OPAL = TOPAZ.", "The tea is warm."), by_words("4", "JADE = QUARTZ.", "On it goes."),
]  # fmt: skip


def read_chain(order, blocks_with_a_term=2, chain=CHAIN):
    class Lexicon(StubIndex):
        def __len__(self):
            return 1000

        def document_frequency(self, terms):
            return dict.fromkeys(terms, blocks_with_a_term)

    question = "Which has 48213?"
    one = ExtractiveReader(QueryAnalyzer(question, HashEncoder(), Lexicon()))
    reading, memory = None, WorkingMemory()
    for number in order:
        reading = one.read(question, memory, [chain[number]])
        memory = reading.memory
    return reading.update, "".join(one.write(question, memory))


def test_identifiers_link_sentences_in_whatever_order_they_are_read():
    for order in ((0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)):
        _, said = read_chain(order)
        assert all(link in said for link in ("RUBY = 48213", "TOPAZ = RUBY", "OPAL = TOPAZ")), order
    assert read_chain((0, 1))[0]  # a linked sentence opens the update gate
    assert not read_chain((0, 3))[0]


def test_all_linked_sentences_of_a_block_are_quoted():
    chain = [
        by_words("1", "RUBY = 48213.", "The wind is mild."),
        by_words("2", "TOPAZ = RUBY.", "OPAL = TOPAZ.", "On."),
    ]
    for order in ((0, 1), (1, 0)):
        _, said = read_chain(order, chain=chain)
        assert all(link in said for link in ("RUBY = 48213", "TOPAZ = RUBY", "OPAL = TOPAZ")), order


def test_a_sentence_that_a_block_repeats_is_quoted_once():
    chain = [by_words("1", "RUBY = 48213.", "RUBY = 48213."), by_words("2", "TOPAZ = RUBY.", "TOPAZ = RUBY.")]
    _, said = read_chain((0, 1), chain=chain)
    assert said == "RUBY = 48213. TOPAZ = RUBY."


def test_an_identifier_that_many_blocks_contain_links_nothing():
    assert not read_chain((0, 1), blocks_with_a_term=5)[0]


def test_identifiers_are_no_words_numbers_or_years():
    assert identifiers("In 1984 NASA sold X_1, part 7B-A113 and FSQHZ for 5 USD; max_tokens is 12. Rome.") == {
        "NASA", "X_1", "7B-A113", "FSQHZ", "max_tokens"
    }  # fmt: skip


def test_a_name_from_the_notes_leads_to_the_sentence_that_has_it():
    homes = block("Rules", "Staff work at home as their office allows.", "In Tallinn it is four days.", "In Ghent two.")
    asked = "How many days may Team Heron work from home?"
    reads = ExtractiveReader(QueryAnalyzer(asked, HashEncoder(), StubIndex()))
    scores = {}
    for notes in ("", "Team Heron: Its desks are in the Tallinn office."):
        found = reads.read(asked, WorkingMemory(text=notes), [homes]).memory.evidence
        scores[notes] = {e.text: e.score for e in found}
    without, having = scores.values()
    assert having["In Tallinn it is four days."] == pytest.approx(without["In Tallinn it is four days."] + LINKED_BONUS)
    assert having["In Ghent two."] == without["In Ghent two."]


def test_names_of_the_question_and_of_the_blocks_own_label_lead_nowhere():
    notes = WorkingMemory(text="Acme: Acme rents the Harbour Building.")
    before, after = (reader().read(QUESTION, memory, [HARBOUR]).memory.evidence for memory in (WorkingMemory(), notes))
    assert [e.score for e in after[len(notes.evidence) :]] == [e.score for e in before]


def test_a_sentence_stands_under_its_own_heading_in_a_chunk_of_several_sections():
    texts = ["It logs faster.", "# 3.2", "The buffer survives a restart."]
    release = block("Granite", *texts)
    release = replace(release, chunk=replace(release.chunk, headings=("3.4",)))
    lines = reader().read("Which release of Granite keeps its buffer?", WorkingMemory(), [release]).memory.text
    assert "Granite › 3.2: The buffer survives a restart." in lines.split("\n")
    assert "Granite › 3.2: # 3.2" in lines.split("\n")
    assert "Granite › 3.4: It logs faster." in lines.split("\n")


def test_quoted_sentences_that_do_not_name_their_document_stand_behind_its_title():
    contracts = [
        block(f"{name} contract", f"The notice period is {n} months.") for n, name in ((3, "Acme"), (6, "Bolt"))
    ]
    said = written("What is the notice period?", *contracts)
    assert "Acme contract: The notice period is 3 months." in said
    assert "Bolt contract: The notice period is 6 months." in said
    named = block("Bolt", "The notice period of Bolt is 6 months.")
    assert written("What is the notice period?", named) == "The notice period of Bolt is 6 months."
    for title in ("", "17", "b"):
        assert written("What is the notice period?", block(title, "It is 6 months.")) == "It is 6 months."


def test_a_pronoun_counts_for_the_name_that_it_stands_for():
    people = block(
        "People", "Ines Duarte is manager.", "She was born in Porto.", "Tom Bell is born.", "He was born in Leeds."
    )
    memory = WorkingMemory(text="Project Heron is led by Ines Duarte.")
    one = ExtractiveReader(QueryAnalyzer("Where was the leader of Heron born?", HashEncoder(), StubIndex()))
    scores = []
    for known in (WorkingMemory(), memory):
        evidence = one.read("Where was the leader of Heron born?", known, [people]).memory.evidence
        scores.append({e.text: e.score for e in evidence})
    gained = {text: round(scores[1][text] - scores[0][text], 3) for text in scores[0].keys() & scores[1].keys()}
    assert gained["She was born in Porto."] == LINKED_BONUS
    assert gained["He was born in Leeds."] == 0.0


def scored(chunk, **scores):
    """Kept sentences of a chunk, those whose text begins with a word given, with its score."""
    spans = {
        text.split()[0].strip(":").lower(): span for text, span in zip(chunk.sentence_texts(), chunk.spans, strict=True)
    }
    return [Evidence.of(chunk, spans[first], score) for first, score in scores.items()]


def test_of_the_best_chunks_good_short_lines_are_quoted_too():
    record = of_text(
        "Ward: Heron\nBuilt: 1972\nKeeper: Lee", sentences=["Ward: Heron", "Built: 1972", "Keeper: Lee"]
    ).chunk
    kept = scored(record, ward=0.8, built=0.5, keeper=0.3)
    assert [e.text for e in quoted_sentences({"old": 1.0}, kept, Outlines())] == ["Ward: Heron", "Built: 1972"]
    prose = block("", "Rain fell there.", "Heron is a ward.", "It dates from 1972.").chunk
    kept = scored(prose, heron=0.8, rain=0.5, it=0.5)
    said = [e.text for e in quoted_sentences({"old": 1.0}, kept, Outlines())]
    assert said == ["Heron is a ward.", "It dates from 1972."]


def test_a_record_is_quoted_with_those_that_answer_too():
    offices = {"Ann": "Leeds", "Bob": "Ulm", "Cem": "Leeds", "Dora": "Leeds", "Emil": "Brno"}
    rows = [f"Name: {name}; Office: {office}; Floor: 1" for name, office in offices.items()]
    staff = of_text("\n\n".join(rows), sentences=rows).chunk
    asked = {root(t): 1.0 for t in content_terms("Who works in the Leeds office?")}

    def said(*kept):
        evidence = [Evidence.of(staff, staff.spans[place], score) for place, score in kept]
        return [e.text.partition(";")[0] for e in quoted_sentences(asked, evidence, Outlines())]

    assert said((0, 0.8)) == ["Name: Ann", "Name: Cem", "Name: Dora"]
    assert "Name: Emil" not in said((0, 0.8), (1, 0.7)), "Bob is elsewhere, and so is Emil"
    assert "Name: Emil" not in said((1, 0.8)), "every record has an office"


def test_chunks_are_quoted_in_the_order_in_which_they_were_read():
    first, second = (
        block(name, text).chunk for name, text in (("Acme", "Acme rents it."), ("Hall", "Lloyd insures it."))
    )
    kept = [Evidence.of(first, first.spans[0], 0.4), Evidence.of(second, second.spans[0], 0.9)]
    said = [e.text for e in quoted_sentences({"insur": 1.0}, kept, Outlines())]
    assert said == ["Acme rents it.", "Lloyd insures it."]


def test_a_table_without_a_word_of_the_question_is_not_listed_where_another_chunk_answers():
    rows = [f"| Land{n} | {n} |" for n in range(8)]
    first = of_text("\n".join(["| Country | Days |", *rows]), sentences=["| Country | Days |", *rows]).chunk
    second = Chunk(text="| Finland | 42 |", document_id="text", ordinal=1, sentences=((0, 16),))
    kept = [Evidence.of(first, first.spans[3], 0.5), Evidence.of(second, (0, 16), 0.9)]
    asked = {root(t): 1.0 for t in content_terms("How long for Finland?")}
    texts = [e.text for e in quoted_sentences(asked, kept, Outlines())]
    assert "| Finland | 42 |" in texts
    assert sum(text.startswith("| Land") for text in texts) == 1


def test_the_label_of_values_in_several_records_links_nothing():
    records = block("a", "name: One; price_eur: 3", "name: Two; price_eur: 4", "name: Three; price_eur: 5")
    many = StubIndex({f"Page {n}": "Text." for n in range(500)})
    links = IdentifierLinks(QueryAnalyzer("What does One cost?", HashEncoder(), many))
    links.add(records.chunk)
    kept = [Evidence.of(records.chunk, records.chunk.spans[0], 0.9)]
    assert list(links.find_linked(kept)) == []
    defined = block("b", "name: One; code: AB12", "AB12: broken")
    links.add(defined.chunk)
    kept = [Evidence.of(defined.chunk, defined.chunk.spans[0], 0.9)]
    assert [e.text for e in links.find_linked(kept)] == ["AB12: broken"]


def test_a_reference_to_a_clause_is_followed_within_its_document():
    texts = [
        "2.3 The Tenant may terminate this agreement early in accordance with clause 7.3.", "3.1 The rent is EUR 900.",
        "7.2 The Landlord may act if the rent is late.", "7.3 Notice of nine months and a fee are necessary.",
    ]  # fmt: skip
    lease, question = block("Lease", *texts), "Can the tenant terminate early?"
    assert written(question, lease) == f"Lease: {texts[0]} {texts[3]}"
    blocks = [block("Lease", *texts[:3]), block("Other", texts[3])]
    kept = reader().read(question, WorkingMemory(), blocks).memory.evidence
    assert len({e.score for e in kept if e.text in (texts[0], texts[3])}) == 2, "it is of another document"
    twice = block("Lease", *texts, "7.3 It rains.")
    assert texts[3] not in written(question, twice)
