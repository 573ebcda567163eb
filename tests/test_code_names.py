"""Names in code, and the words that they consist of."""

import pytest

from compmem import Chunk
from compmem.store.transient import TransientLexicalIndex
from compmem.text.code_names import spell_code_names
from compmem.text.tokenize import content_terms, name, words


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("max_retry_count", "max retry count"),
        ("__init_cache__", "init cache"),
        ("PH_CARRIER_TIMEOUT", "PH CARRIER TIMEOUT"),
        ("getUserName", "get User Name"),
        ("parseHTMLPage", "parse HTML Page"),
        ("CompMemQueryEngine", "Comp Mem Query Engine"),
    ],
)
def test_the_words_stand_behind_a_name(text, parts):
    assert spell_code_names(f"Set {text}, please.") == f"Set {text} {parts} , please."


@pytest.mark.parametrize("text", ["McDonald and YouTube", "an iPhone", "_x and x_", "a-b", "HTTPServer", "it's Ω_β"])
def test_other_words_stay_as_they_are(text):
    assert spell_code_names(text) == text


def test_names_have_only_their_own_words():
    assert name("max_retry_count") == "max_retry_count"
    assert words("max_retry_count") == ["max_retry_count", "max", "retry", "count"]


def test_a_lexical_search_finds_a_name_by_its_words():
    index = TransientLexicalIndex()
    for number, text in enumerate(["def pay(): ...", "max_retry_count = 3", "Count the boats."]):
        index.add(number, Chunk(text=text, document_id=str(number)))
    try:
        assert index.bm25([content_terms("How often may it retry?")], 3)[0][0][0] == 1
    finally:
        index.close()
