"""Documents and sections that only their names tell apart, and questions about one of them."""

from compmem import Chunk, Evidence
from compmem.readers.outline import Outlines
from compmem.readers.siblings import MAX_SECTIONS, without_siblings


def quoted(*places):
    """One sentence for each title and text; the text may have a heading above it."""
    found = []
    for number, (title, text) in enumerate(places):
        *above, sentence = text.split("\n\n")
        start = len(text) - len(sentence)
        spans = ((0, len(above[0])), (start, len(text))) if above else ((0, len(text)),)
        chunk = Chunk(text=text, document_id=str(number), title=title, sentences=spans)
        found.append(Evidence.of(chunk, spans[-1], 0.5))
    return found


def kept(question, *places):
    return [e.text for e in without_siblings(question, quoted(*places), Outlines())]


ALBA, BRISA = ("Boat file Alba", "Owner: Berg"), ("Boat file Brisa", "Owner: Lund")


def test_a_document_with_another_name_than_the_one_asked_for_is_left_out():
    assert kept("Who owns the Alba?", ALBA, BRISA) == ["Owner: Berg"]
    assert kept("who owns the brisa", ALBA, BRISA) == ["Owner: Lund"]
    both = ["Owner: Berg", "Owner: Lund"]
    assert kept("Who owns a boat?", ALBA, BRISA) == both
    assert kept("Who owns the Alba and the Brisa?", ALBA, BRISA) == both
    assert kept("Who owns the Alba?", ALBA, ("List of boats", "Owner: Lund")) == both
    assert kept("Who owns the Alba?", ("Alba", "Owner: Berg"), ("Brisa", "Owner: Lund")) == both, "names share no word"


def test_so_is_a_section():
    first, second = ("Fleet", "# Ferry Aurora\n\nIt has 12 boats."), ("Fleet", "# Ferry Fjord\n\nIt has 9 boats.")
    assert kept("How many boats has the Fjord?", first, second) == ["It has 9 boats."]


def test_a_section_that_says_more_of_what_is_asked_is_kept():
    basic, pro = ("Plan Basic", "It has mail support."), ("Plan Pro", "It has phone support.")
    assert len(kept("I have Basic. Which plan has phone support?", basic, pro)) == 2
    april, may = ("Minutes April", "The offsite is on 12 May."), ("Minutes May", "The offsite was discussed.")
    assert len(kept("Where is the offsite in May?", april, may)) == 2
    first, second = ("Handbook part I", "Ask for holiday."), ("Handbook part II", "Holiday is kept until 31 March.")
    assert len(kept("May I keep holiday?", first, second)) == 2, "I is not the number of a part"


def test_a_question_that_compares_needs_the_others():
    for question in ("Which boat has the same owner as Alba?", "Who owns boats other than the Alba?"):
        assert len(kept(question, ALBA, BRISA)) == 2, question


def test_a_document_that_another_one_names_is_kept():
    alba = ("Boat file Alba", "It replaces the boat of the boat file Brisa.")
    assert len(kept("Who owned what Alba replaces?", alba, BRISA)) == 2


def test_many_sections_are_not_compared():
    many = [(f"Boat file {n}", "Owner: Lund") for n in range(MAX_SECTIONS)]
    assert len(kept("Who owns the Alba?", ALBA, *many)) == MAX_SECTIONS + 1
    assert len(kept("Who owns the Alba?", ALBA, *many[1:])) == 1
