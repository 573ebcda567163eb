"""A long block is gated like the passages in it; a heading inside it is one of its names."""

import numpy as np

from compmem import Document, IndexConfig, MemoryIndex
from compmem.gate import parse_block, parse_windows
from compmem.ingest.chunking import split
from compmem.schema import Chunk, MemoryBlock
from compmem.text.tokenize import heading_at, heading_over, headings_in, names_of
from tests.hashing import HashEncoder

FACT = "Harbour Hall\nHarbour Hall is a building that Acme rents from the town since 1990."
NOISE = [f"Matter {n}\nMatter {n} is about sheep, rain and hills in the north of the land." for n in range(60)]


def block(text, title=""):
    [chunk] = split(Document(text=text, title=title), chunk_tokens=100_000, count=lambda ts: [len(t) for t in ts])
    texts = [text, *(text[a:b] for a, b in chunk.sentences)]
    return MemoryBlock(chunk=chunk, vectors=HashEncoder().encode(texts))


def test_headings_are_short_lines_over_long_ones():
    text = f"{FACT}\n\nno heading\n{'x' * 50}\n\nShort\nover short\n\nA sentence.\n{'x' * 50}"
    assert headings_in(text) == ["Harbour Hall"]
    assert heading_at(text, 0) == "Harbour Hall"
    assert heading_at(text, 5) == ""
    assert heading_over(text, text.index("town")) == "Harbour Hall"
    assert heading_over(text, text.index("no heading")) == ""
    assert ("harbour hall", "heading") in names_of("", (), text)


def test_a_paragraph_ends_with_any_empty_line():
    for blank in ("\n\n", "\r\n\r\n", "\n \t\n", "\n\n\n"):
        line = blank[: blank.index("\n") + 1]
        parts = [*NOISE[:20], FACT, *NOISE[20:]]
        text = blank.join(part.replace("\n", line) for part in parts)
        assert heading_over(text, text.index("Acme")) == "Harbour Hall", repr(blank)
        assert [w.titles[0] for w in parse_windows(block(text))][19:22] == ["matter 19", "harbour hall", "matter 20"]


def test_a_usual_block_is_one_window_and_a_long_one_has_a_window_for_each_paragraph_under_a_heading():
    usual = block("Acme rents a building. It is red.", title="Acme")
    assert [d.text for d in parse_windows(usual)] == [parse_block(usual).text]
    long = parse_windows(block("\n\n".join([*NOISE[:20], FACT, *NOISE[20:]])))
    assert [d.titles[0] for d in long] == [f"matter {n}" for n in range(20)] + ["harbour hall"] + [
        f"matter {n}" for n in range(20, 60)
    ]
    assert sum(len(d.vectors) - 1 for d in long) == len(block("\n\n".join([*NOISE, FACT])).chunk.sentences)
    for window in long:
        assert abs(float(np.linalg.norm(window.vectors[0])) - 1) < 1e-5


def test_windows_without_headings_are_cut_by_length_and_keep_the_title():
    text = " ".join(f"Sentence number {n} tells something of sheep." for n in range(100))
    windows = parse_windows(block(text, title="Sheep"))
    assert len(windows) > 2
    assert all(w.length <= 200 and w.titles == ("sheep",) for w in windows)
    assert sum(w.length for w in windows) == len(text.split())


def test_the_gate_finds_what_a_long_block_holds_among_other_matters():
    config = IndexConfig(encoder=HashEncoder(), chunk_tokens=1000)
    with MemoryIndex.create(None, config) as index:
        index.add([Document(id="d", text="\n\n".join([*NOISE[:45], FACT, *NOISE[45:]]))])
        held = next(c for c in index.chunks("d") if "Acme" in c.text)
        best = index.search("Which building does Acme rent?", 1)[0]
        assert best.chunk.id == held.id
        assert isinstance(best.chunk, Chunk)
        answer = index.answer("Which building does Acme rent?")
        told = "Harbour Hall: Harbour Hall is a building that Acme rents from the town since 1990."
        assert told in answer.working_memory.split("\n")
