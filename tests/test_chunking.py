import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compmem.chunking import CHARS_PER_TOKEN, sentences, split
from compmem.schema import Chunk, Document

_TOKEN = re.compile(r"\w{1,4}|[^\w\s]")


def count(texts):
    """A stand-in for a tokenizer: pieces of words, and two tokens around each text."""
    return [len(_TOKEN.findall(text)) + 2 for text in texts]


def cut(text, chunk_tokens=32, count=count):
    return split(Document(text=text, id="d", title="T", metadata={"a": 1}), chunk_tokens=chunk_tokens, count=count)


PIECES = st.sampled_from(
    ["# Head\n", "Title\n=====\n\n", "A sentence here. ", "And more of it! ", "\n\n", "\n", " ", "- item\n",
     "1.2 Part\n", "def f(x):\n    return x\n", "class Foo(Bar):\n", "```\n# code\n```\n", "「行こう。」と言った。", "你好。",
     "그는 갔다. ", "z. B. ", "Dr. ", "3.14 ", "x" * 80, "\r\n", "\t", "\x00", "\u2028", "e\u0301", "👩‍👩‍👧", '"', "...",
     "a" * 700, " " * 700]
)  # fmt: skip
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=12)), max_size=60).map("".join)


@given(text=TEXTS, chunk_tokens=st.integers(16, 80))
@settings(max_examples=150, deadline=None)
def test_chunks_cover_the_text_within_the_limit(text, chunk_tokens):
    chunks = cut(text, chunk_tokens)
    assert "".join(c.text for c in chunks) == (text if text.strip() else "")
    for number, chunk in enumerate(chunks):
        assert chunk.ordinal == number
        assert chunk.document_id == "d"
        assert chunk.text == text[chunk.start : chunk.end]
        assert count([chunk.text])[0] <= chunk_tokens
        assert len(chunk.text) <= chunk_tokens * CHARS_PER_TOKEN


@given(text=TEXTS)
@settings(max_examples=150, deadline=None)
def test_sentences_hold_everything_but_blanks(text):
    at = 0
    for start, end in sentences(text):
        assert at <= start < end <= len(text)
        assert not text[at:start].strip()
        assert text[start:end] == text[start:end].strip()
        at = end
    assert not text[at:].strip()


@pytest.mark.parametrize("text", ["", " ", "\n\n \t"])
def test_blank_text_has_no_chunks(text):
    assert cut(text) == []


def test_given_chunks_keep_their_borders(caplog):
    given = [Chunk(text="One. Two.", headings=("H",), metadata={"b": 2}), "", "word " * 50]
    chunks = split(Document(chunks=given, id="d", title="T", metadata={"a": 1}), chunk_tokens=32, count=count)
    assert [c.text for c in chunks] == ["One. Two.", "word " * 50]
    assert [(c.ordinal, c.start, c.title) for c in chunks] == [(0, 0, "T"), (1, 9, "T")]
    assert chunks[0].headings == ("H",)
    assert chunks[0].metadata == {"a": 1, "b": 2}
    assert chunks[0].sentences == ((0, 4), (5, 9))
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "'d#1'" in caplog.text
