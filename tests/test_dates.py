"""Dates are found in whatever form question and document have them."""

import pytest

from compmem.schema import Chunk
from compmem.store.transient import TransientLexicalIndex
from compmem.text.dates import spell_dates
from compmem.text.tokenize import content_terms, name, terms, words

FORMS = (
    "8 April 2024", "April 8, 2024", "8th of April, 2024", "April 8th 2024", "8 Apr 2024", "Apr. 08, 2024",
    "2024-04-08", "2024/4/8", "08.04.2024", "8/4/2024", "04-08-2024", "2024-04-08T10:15:00Z",
)  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_date_has_the_words_of_its_full_form(form):
    assert set(terms("8 April 2024")) <= set(terms(f"It was on {form} in Oslo."))


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("8 april 2024", "8 april 2024"),
        ("2024-04-08, 09:30", "2024-04-08 8 april , 09:30"),
        ("04/08/2024", "04/08/2024 4 august 8 april "),
        ("24.12.2024", "24.12.2024 24 december "),
        ("12/24/2024", "12/24/2024 24 december "),
        ("mar 2024", "mar 2024 march "),
        ("sept. 3rd", "sept. 3rd 3 september "),
        ("3rd of sept", "3rd of sept 3 september "),
        ("may 5", "may 5"),
    ],
)
def test_the_missing_words_stand_behind_a_date(text, spelled):
    assert spell_dates(text) == spelled


@pytest.mark.parametrize(
    "text",
    ["10.12.2024.1", "v1.2.2024", "2024-13-40", "2024-00-10", "31/31/2024", "555-12-2024", "march on", "the dec 10a",
     "summar 3", "1 decade", "120 mar", "1.2.24", "2024-04-08-1"],
)  # fmt: skip
def test_what_is_no_date_stays_as_it_is(text):
    assert spell_dates(text) == text


def test_names_have_only_their_own_words():
    assert name("Minutes 2024-04-08") == "minutes 2024 04 08"
    assert words("Minutes 2024-04-08") == ["minutes", "2024", "04", "08", "8", "april"]


def test_a_lexical_search_finds_a_date_in_another_form():
    index = TransientLexicalIndex()
    for number, text in enumerate(["2024-04-07 The pump failed.", "2024-04-08 The pump failed.", "April showers."]):
        index.add(number, Chunk(text=text, document_id=str(number)))
    try:
        assert index.bm25([content_terms("What happened on April 8th, 2024?")], 3)[0][0][0] == 1
        assert index.bm25([content_terms("What happened on 8.4.2024?")], 3)[0][0][0] == 1
    finally:
        index.close()
