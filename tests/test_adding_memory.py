"""A long document is chunked, encoded and written in pieces: memory use besides its text does not grow with it."""

import tracemalloc

import numpy as np
import pytest

from compmem import Document, IndexConfig, MemoryIndex
from compmem.ingest import chunking, pipeline
from compmem.store import writing

LINES = {
    "paragraphs": "The lease of the Harbour Building ends in 2031. It was signed by Acme.\n\n",
    "lines": "- one of many\n",
    "one line": "The lease of the building ends then. ",
    "no borders": "ab",
}


class OneVector:
    """Every text has the same vector."""

    def encode(self, texts):
        return np.full((len(texts), 64), 0.125, dtype=np.float32)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", 8_000)
    monkeypatch.setattr(pipeline, "PIECE_CHARACTERS", 8_000)
    monkeypatch.setattr(writing, "PIECE", 8_000)
    monkeypatch.setattr(chunking, "_WINDOW_CHARS", 8_000)


def index(path, shards=None):
    return MemoryIndex.create(path, IndexConfig(encoder=OneVector(), chunk_tokens=64), shards=shards)


def peak(memory, document):
    """Bytes of Python and NumPy memory that adding a document needs."""
    tracemalloc.start()
    try:
        assert memory.add([document]) == 1
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(("kind", "shards"), [*((kind, None) for kind in LINES), ("paragraphs", 2)])
def test_memory_for_adding_a_document_does_not_grow_with_it(tmp_path, small_pieces, kind, shards):
    line = LINES[kind]
    with index(tmp_path / "m", shards) as memory:
        memory.add([Document(id="first", text="Loads what is loaded once.")])
        short, long = (
            peak(memory, Document(id=name, text=line * (size // len(line))))
            for name, size in (("short", 40_000), ("long", 160_000))
        )
        assert long < 1.25 * short
        assert memory.verify() == []


def test_a_long_document_is_kept_as_a_short_one_is(tmp_path, small_pieces, monkeypatch):
    text = "".join(f"# Part {n}\n\nThe lease of house {n} ends in {n}. " + LINES["paragraphs"] * 3 for n in range(90))
    document = Document(id="d", title="Leases", text=text, context="author: Bianca", metadata={"year": 2024})
    with index(tmp_path / "pieces") as memory:
        assert [memory.add([document]), memory.add([document])] == [1, 0]
        assert memory.verify() == []
        in_pieces, whole = memory.chunks("d"), memory.get("d")
    monkeypatch.undo()
    with index(tmp_path / "whole") as memory:
        memory.add([document])
        assert (memory.chunks("d"), memory.get("d")) == (in_pieces, whole)


def test_a_long_document_that_fails_midway_leaves_the_old_one(tmp_path, small_pieces):
    class Failing(OneVector):
        left = 10

        def encode(self, texts):
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("no more")
            return super().encode(texts)

    encoder = Failing()
    with MemoryIndex.create(tmp_path / "m", IndexConfig(encoder=encoder, chunk_tokens=64)) as memory:
        memory.add([Document(id="d", text="The old text.")])
        encoder.left = 2
        with pytest.raises(RuntimeError, match="no more"):
            memory.add([Document(id="d", text=LINES["paragraphs"] * 800)])
        assert memory.get("d").text == "The old text."
        assert memory.verify() == []
        encoder.left = 1000
        assert memory.add([Document(id="d", text=LINES["paragraphs"] * 800)]) == 1
        assert len(memory.get("d").text) == len(LINES["paragraphs"]) * 800
