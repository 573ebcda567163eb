"""Questions about codes that no text has."""

import pytest

from compmem import Document, MemoryIndex
from compmem.text.codes import only_unknown_codes

TEXTS = ("INC-249: a root certificate had expired.", "The Hearth G2 and the Hearth G 3 differ.", "The top-5 are kept.")


@pytest.mark.parametrize(
    "question",
    ["What caused INC-250?", "What caused INC250?", "How warm may the Hearth G4 get?", "Was INC-250 caused by a G4?"],
)
def test_a_question_about_an_unknown_code_is_about_nothing(question):
    assert only_unknown_codes(question, TEXTS)


@pytest.mark.parametrize(
    "question",
    [
        "What caused INC-249?",  # there
        "What caused inc 249 in 2023?",
        "How warm may the Hearth G3 get?",  # written otherwise
        "Which is newer, the G3 or the G4?",  # one of them is there
        "What does E52 mean?",  # no code has these letters
        "What are the top-10 customers?",  # no capitals
        "What caused the incident of 2023?",
        "What is in INC-250-A?",  # part of a longer code
        "What caused INC-0249?",
        "What was sold in Q1 and in H2?",  # a quarter and a half of a year
        "",
    ],
)
def test_other_questions_are_about_something(question):
    assert not only_unknown_codes(question, TEXTS)


@pytest.mark.parametrize("said", ["ISO/IEC 27001 since May", "iso no. 27001", "ISO–027001"])
def test_a_code_that_is_written_otherwise_is_known(said):
    question = "When was ISO27001 granted?"
    assert not only_unknown_codes(question, ("ISO 9001 in 2020.", said))
    assert only_unknown_codes(question, ("ISO 9001 in 2020.", "ISO 270012, ISO 127001, 27001 EUR"))


SHAPED = ("Bolt M12x60 costs 3. Version 2.6.1 is out.", "Sample 0976-B, room D7.31, order SO-88298F, 4.3.2024.", "H5N1")


@pytest.mark.parametrize(
    "question",
    [
        "What does bolt M14x80 cost?", "Where is D7.33?", "Is SO-88299F paid?", "Is SO-77123B paid?",
        "What do M14x80 and M16x80 cost?",
    ],
)  # fmt: skip
def test_a_code_of_letters_and_numbers_in_turn_is_unknown_where_others_look_like_it(question):
    assert only_unknown_codes(question, SHAPED)


@pytest.mark.parametrize(
    "question",
    [
        "What does bolt M12x60 cost?", "What does m 12 x 60 cost?", "Is SO88298F paid?",
        "What do M12x60 and M14x80 cost?",  # one of them is there
        "What is a W3C draft, and a 1234-CD?",  # none looks like these
        "What happened on 5.3.2024?", "How much is 20mg?", "What is 5G-based?", "Which F-16s and MP3s?", "mid-1990s",
        "Is it open at 10PM?", "Can I send 50MB?", "Can version 2.7.0 be upgraded?", "Who took 0977-B?",
    ],
)  # fmt: skip
def test_other_letters_and_numbers_say_nothing(question):
    assert not only_unknown_codes(question, SHAPED)


def test_a_code_within_a_range_is_known():
    assert not only_unknown_codes("Is AB1500X recalled?", ("Recalled are AB1200X to AB1900X.",))
    assert only_unknown_codes("Is AB1500X recalled?", ("Recalled are AB1200X and AB1900X.",))


def test_a_question_with_very_many_codes_is_not_searched_for():
    assert only_unknown_codes("G4 " * 100, TEXTS)
    assert not only_unknown_codes(" ".join(f"G{n}" for n in range(4, 100)), TEXTS)


def test_nothing_is_quoted_about_a_code_that_no_document_has():
    index = MemoryIndex.create()
    index.add(
        Document(id=str(n), title=f"Incident INC-{n}", text=f"INC-{n} was caused by a fault in pump {n % 7}.")
        for n in range(200, 240)
    )
    known, unknown = (index.answer(f"What caused incident INC-{n}?") for n in (215, 250))
    assert known.found
    assert known.text == "INC-215 was caused by a fault in pump 5."
    assert not unknown.found
    assert not unknown.sources
    assert index.recall("What caused incident INC-250?", 3)  # a ranking has the nearest all the same
    asked = index.answer("What caused incident INC-250?", chat=lambda messages: "The documents do not say.")
    assert asked.text == "The documents do not say."
    assert not asked.found
