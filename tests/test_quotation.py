"""What stands before and between quoted sentences: titles, headings, records, code, lists."""

from dataclasses import replace

import numpy as np

from compmem.readers.outline import Outline, Outlines
from compmem.readers.quotation import quotation
from compmem.readers.quoting import quoted_sentences
from compmem.schema import Chunk, Evidence, MemoryBlock
from compmem.text.sentences import sentences
from compmem.text.tokenize import content_terms, root
from tests.hashing import HashEncoder
from tests.test_extractive import block, written


def of_document(title, text, headings=()):
    """A block of a text, with the sentences that the library finds."""
    spans = tuple(sentences(text))
    chunk = Chunk(text=text, document_id=title, title=title, headings=headings, sentences=spans)
    return MemoryBlock(chunk=chunk, vectors=HashEncoder().encode([text, *chunk.sentence_texts()]))


def test_a_heading_without_marks_is_written_before_what_it_introduces():
    rent = of_document("Lease", "4. RENT\n\n4.1 The mill costs EUR 900.\n\n5. COSTS\n\n5.1 They are shared.\n")
    assert written("What is the rent?", rent) == "Lease › 4. RENT: 4.1 The mill costs EUR 900."
    for law in ("Governing law\n\n", "Governing law\n=====\n\n"):
        terms = of_document("Terms", f"{law}That of Ireland.\n\nNotices\n\nThey go to the clerk.\n")
        assert written("What is the governing law?", terms) == "Terms › Governing law: That of Ireland."


def test_what_is_a_heading_without_marks():
    def found(text):
        return Outline.of(of_document("", text).chunk).levels

    assert found("Alice Smith\n\nBob Jones\n\nCarol lives in Oslo.") == (0, 8, 0)
    assert found("LEASE\n\n1. Rent\n\n1.1 Due dates\n\nOn the first day.") == (8, 9, 10, 0)
    assert found("1. Open the lid\n\n2. Take it out\n\n3. Close it") == (0, 0, 0)
    for text in ("Rent is due.\n\nOn Monday.", "rent\n\nOn Monday.", "Rent: 900\n\nOn Monday.", "Rent\nOn Monday."):
        assert not any(found(text)), text


def test_the_sections_of_a_sentence_are_those_that_are_known():
    text = "## 3.2\n\n### Added\n\n- Dark mode\n\n## 3.1\n\n### Removed\n\n- Old menu\n\n**Note**\n\nSee below.\n"
    block = of_document("Changes", text, headings=("Releases", "3.2", "Added"))
    assert written("When was dark mode added?", block) == "Changes › Releases › 3.2 › Added:\n- Dark mode"
    assert written("When was the old menu removed?", block) == "Changes › Releases › 3.1 › Removed:\n- Old menu"
    bold = of_document("Changes", "**Old menu**\n\nIt is gone.\n", headings=("Releases", "3.2"))
    assert written("Where is the old menu?", bold) == "Changes › Releases › 3.2 › Old menu: It is gone."


def test_a_bold_question_is_quoted_with_its_answer():
    text = "**Do you ship to Oslo?**\nYes, by boat.\n\n**Who pays for the return?**\n\nYou do.\n"
    assert written("do you ship to oslo", of_document("FAQ", text)) == "FAQ › Do you ship to Oslo? Yes, by boat."
    assert written("who pays the return", of_document("FAQ", text)) == "FAQ › Who pays for the return? You do."


def test_a_line_of_a_record_is_quoted_with_the_first_one():
    text = "A-1: lost mail\nCause: a storm\nFixed by: Ann\n\nA-2: slow search\nCause: a mouse\nFixed by: Piotr\n"
    assert "A-2: slow search\nFixed by: Piotr" in written("Which was fixed by Piotr?", of_document("Log", text))
    glossary = of_document("Words", "OCR: reading of scans\nPDF: a kind of file\nRAG: retrieval before writing\n")
    assert written("What is PDF?", glossary) == "Words:\nPDF: a kind of file"


def test_code_is_quoted_whole_as_it_stands():
    code = "```python\nimport mill\n\nwheel = mill.turn(\n    speed=3,\n)\n```"
    page = of_document("Mill", f"Use it in Python:\n\n{code}\n\nIt rains.\n")
    assert written("How do I use it in Python?", page) == f"Use it in Python:\n{code}"
    nested = "````\n```\nmill = 3\n```\n````"
    page = of_document("Mill", f"Use it in Markdown:\n\n{nested}\n\nIt rains.\n")
    assert written("How do I use it in Markdown?", page) == f"Use it in Markdown:\n{nested}"
    long = "```\n" + "".join(f"step_{n}();\n" for n in range(30)) + "```"
    assert "step_29" not in written("How do I use step_3?", of_document("Mill", long))


def test_of_labelled_items_only_those_are_quoted_that_the_question_names():
    text = "## To do\n\n- [ ] Elif: ask the clerk\n- [ ] Ben: mend the wheel\n- [ ] Ann: call the miller\n"
    assert written("What does Elif have to do?", of_document("", text)) == "To do:\n- [ ] Elif: ask the clerk"


def test_a_sentence_as_good_as_the_best_of_its_chunk_is_quoted_too():
    rules = block("Rules", "During probation the notice is two weeks.", "After probation the notice is long.")
    even = replace(rules, vectors=np.ones_like(rules.vectors) / np.sqrt(rules.vectors.shape[1]))
    assert written("What is the notice after probation?", even) == " ".join(f"{t}" for t in (
        "Rules:", "During probation the notice is two weeks.", "After probation the notice is long.",
    ))  # fmt: skip


def test_the_sentences_beside_the_best_one_are_quoted_if_a_word_of_the_question_is_missing():
    text = "Cats sleep.\n\nWe meet in May. Dogs come to the garden. Each costs a coin.\n\nRain fell."
    garden = of_document("", text)
    assert written("Do dogs come to the garden?", garden) == "Dogs come to the garden."
    around = "We meet in May. Dogs come to the garden. Each costs a coin."
    assert written("What is the fee for dogs that come to the garden?", garden) == around
    long = of_document("", f"Dogs come to the garden. They run {'far ' * 60}away.")
    assert written("What is the fee for dogs that come to the garden?", long) == "Dogs come to the garden."


def test_lines_of_settings_and_lines_with_a_label_are_no_running_text():
    def beside(text, place):
        return list(Outline.of(of_document("", text).chunk).beside(place))

    assert beside("Cats sleep. Dogs bark. Rain fell.", 1) == [0, 2]
    assert beside("Cats sleep at night.\nDogs bark at cars.\nRain fell on us.", 1) == [0, 2]
    assert beside("CACHE = 3\nLIMIT = 4512\nPORT = 8080", 1) == []
    assert beside("F1: press reset.\nF2: check the tap.\nF3: fill it up.", 1) == []
    assert beside("Note: cats sleep. Dogs bark. Rain fell.", 1) == [0, 2]


def evidence_of(*scored):
    """Evidence of one chunk for each list of texts with scores."""
    for n, texts in enumerate(scored):
        chunk = block(f"Note {n}", *texts).chunk
        yield from (Evidence.of(chunk, span, texts[chunk.text[slice(*span)]]) for span in chunk.spans)


def test_further_sentences_are_quoted_if_a_word_of_the_question_is_missing():
    filler = " ".join(["mud"] * 60)
    evidence = list(evidence_of(
        {"Acme rents it.": 0.9, "The mill is old.": 0.6, f"The mill had {filler}.": 0.55, "It is red.": 0.5},
        {"Bolt rents it.": 0.8, "The barn is new.": 0.3},
    ))  # fmt: skip

    def quoted(*words):
        return [e.text for e in quoted_sentences(dict.fromkeys(words, 1.0), evidence, Outlines())]

    assert quoted("rent") == ["Acme rents it.", "Bolt rents it."]
    assert quoted("rent", "fee")[:3] == ["Acme rents it.", "The mill is old.", f"The mill had {filler}."]
    assert "The barn is new." not in quoted("rent", "fee"), "it has little of the best score"
    evidence = list(evidence_of({"Acme rents it.": 0.9, filler: 0.8, f"{filler} too": 0.7, "Paint is red.": 0.6}))
    assert [text.split()[-1] for text in quoted("rent", "fee")] == ["it.", "mud", "red."], "100 words together"


def test_where_the_best_sentence_only_names_the_subject_the_next_ones_are_quoted():
    villa = of_document("Villa Rosa", "Villa Rosa is a small hotel. It lies in Menton. Breakfast is at eight.")
    assert "It lies in Menton." in written("Where is Villa Rosa?", villa)
    assert written("Is breakfast at eight?", villa) == "Villa Rosa: Breakfast is at eight."


def test_a_line_of_a_record_without_a_title_is_quoted_with_its_first_line():
    def best(title):
        chunk = replace(of_document("", "Name: Ann Lind\nCity: Ulm\nHobby: chess").chunk, title=title)
        return [e.text for e in quoted_sentences({"ches": 1.0}, [Evidence.of(chunk, chunk.spans[2], 0.8)], Outlines())]

    assert best("") == ["Name: Ann Lind", "Hobby: chess"]
    assert best("Ann") == ["Hobby: chess"]


def test_at_most_twelve_chunks_are_quoted():
    kept = list(evidence_of(*({f"Site {n} has a boiler.": 0.9} for n in range(20))))
    assert len(quoted_sentences({"boile": 1.0}, kept, Outlines())) == 12


def test_each_chunk_that_answers_is_quoted_whatever_its_length():
    filler = " ".join(["mud"] * 40)
    kept = list(evidence_of(*({f"Site {n} has a boiler and {filler}.": 0.9, "It is red.": 0.4} for n in range(8))))
    quoted = quoted_sentences({"boile": 1.0}, kept, Outlines())
    assert [e.chunk.title for e in quoted] == [f"Note {n}" for n in range(8)]


def test_a_line_is_quoted_with_those_of_its_record_that_the_question_asks_for():
    def record(name, phone):
        return of_document(name, f"Name: {name}\nOffice: Ulm\nPhone: {phone}").chunk

    ann, bob = record("Ann Lind", 4401), record("Bob Ek", 4402)
    kept = [Evidence.of(ann, ann.spans[0], 0.8), Evidence.of(ann, ann.spans[2], 0.33)]
    kept += [Evidence.of(bob, bob.spans[2], 0.4)]
    asked = {root(t): 1.0 for t in content_terms("Which phone does Ann Lind have?")}
    assert [e.text for e in quoted_sentences(asked, kept, Outlines())][:2] == ["Name: Ann Lind", "Phone: 4401"]


def test_a_row_is_not_quoted_with_rows_that_have_a_word_in_common_with_all():
    rows = [f"| {name} | {n}0 cm |" for n, name in enumerate(("Oak table", "Ash bench", "Fir ladder"), 1)]
    table = of_document("", "\n".join(["| Product | Size |", "| --- | --- |", *rows])).chunk
    kept = [Evidence.of(table, table.spans[n], 0.8 if n == 4 else 0.5) for n in (2, 3, 4)]
    asked = {root(t): 1.0 for t in content_terms("What does the fir ladder of 30 cm cost?")}
    assert [e.text for e in quoted_sentences(asked, kept, Outlines())] == [
        "| Product | Size |",
        "| Fir ladder | 30 cm |",
    ]


def test_this_after_a_preposition_is_quoted_with_what_it_means():
    lease = block("Lease", "The tenant may leave in May.", "In this case the fee is EUR 300.")
    assert written("What is the fee?", lease) == "Lease: The tenant may leave in May. In this case the fee is EUR 300."


def test_a_chunk_with_little_of_the_best_score_is_not_quoted():
    def kept(title, text, score):
        return Evidence.of(block(title, text).chunk, (0, len(text)), score)

    evidence = [kept("a", "Acme rents it.", 0.9), kept("b", "Bolt is old.", 0.3), kept("c", "Crux is far.", 0.37)]
    assert [e.chunk.title for e in quoted_sentences({"rent": 1.0}, evidence, Outlines())] == ["a", "c"]


def test_equal_titles_are_told_apart_by_the_ids_of_their_documents():
    def quoted(*ids):
        found = []
        for number, one in enumerate(ids, 1):
            text = f"Passwords have {number} characters. They expire."
            chunk = Chunk(text=text, document_id=one, title="Policy", sentences=tuple(sentences(text)))
            found += [Evidence.of(chunk, span, 0.5) for span in chunk.spans]
        return "".join(quotation(found, Outlines()))

    assert quoted("it/v1.md", "it/v2.md") == (
        "Policy (v1.md): Passwords have 1 characters. They expire. "
        "Policy (v2.md): Passwords have 2 characters. They expire."
    )
    assert "Policy (a/p.md): " in quoted("a/p.md", "b/p.md")
    plain = "Policy: Passwords have 1 characters. They expire."
    assert quoted("it/v1.md") == plain
    opaque = ("0f8fad5b-d9cb-469f-a165-70867728950e", "7c9e6679-7425-40de-944b-e07fc1f90ae7")
    for said_nothing in (opaque, ("1", "2")):
        assert quoted(*said_nothing) == f"{plain} Policy: Passwords have 2 characters. They expire."
