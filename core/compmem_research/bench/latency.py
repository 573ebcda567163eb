"""Latency of one pass and of the loop over many short blocks, in one folder and in shards.

Blocks are made-up words with random vectors, since encoding a million chunks takes hours and changes no latency.
Questions are encoded by the real encoder, so its time is part of every question's time.
"""

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from compmem.config import IndexConfig
from compmem.encoder import load_encoder
from compmem.index import MemoryIndex
from compmem.schema import Chunk, Document
from compmem_research.bench.scale import RandomVectorEncoder, forced_steps, percentiles, timed
from compmem_research.tasks.names import word

NOTE = (
    "Made-up words, two sentences of 15 a block, and random vectors: latency alone. The gate rejects nearly all of "
    "them, so four steps are timed whatever it says, each with one more sentence in the working memory."
)
"""For readers of the result."""

_WORDS, _COMMON = 50_000, 20
"""Different words; the one of rank r is as frequent as 1 / (r + this)."""
_SENTENCE = 15
_BATCH = 5000
_WARM = 3


def measure(
    *, chunks: Sequence[int] = (100_000, 1_000_000), shards: Sequence[int] = (1, 8), questions: int = 60, seed: int = 0
) -> dict[str, Any]:
    """Milliseconds of a question over indexes of so many blocks, each in so many shards.

    Args:
        chunks: Numbers of blocks.
        shards: Numbers of shards; 1 is an index in one folder.
        questions: Timed questions of each kind; each is some words of a block.
        seed: Seed of blocks and questions.
    """
    stand_in = RandomVectorEncoder(384, load_encoder("all-MiniLM-L6-v2"))
    rows = []
    for count in chunks:
        for parts in shards:
            with TemporaryDirectory() as folder:
                rows.append(_measured(Path(folder) / "index", stand_in, count, parts, questions, seed))
    return {"latency": rows}


def _measured(
    path: Path, stand_in: RandomVectorEncoder, count: int, shards: int, questions: int, seed: int
) -> dict[str, Any]:
    config = IndexConfig(encoder=stand_in)
    index = MemoryIndex.create(path, config, shards=shards if shards > 1 else None)
    began = time.perf_counter()
    made = documents(count, seed)
    asked: list[str] = []
    rng = random.Random(seed)
    while batch := list(islice(made, _BATCH)):
        index.add(batch)
        texts = [chunk.text for d in batch for chunk in d.chunks or () if isinstance(chunk, Chunk)]
        asked += [" ".join(rng.sample(rng.choice(texts).split(), 8)) for _ in range(1 + 2 * questions // 20)]
    seconds = time.perf_counter() - began
    index.close()
    asked = (asked * (1 + (2 * questions + _WARM) // len(asked)))[: 2 * questions + _WARM]
    with MemoryIndex.open(path, encoder=stand_in) as index:
        for question in asked[:_WARM]:  # loads models and maps files
            index.recall(question, 8)
        calls: Mapping[str, Callable[..., Any]] = {
            "one_pass_ms": index.search, "four_steps_ms": partial(forced_steps, index),
        }  # fmt: skip
        times: dict[str, list[float]] = {name: [] for name in calls}
        for number, question in enumerate(asked[_WARM:]):
            name = list(calls)[number % 2]  # in turn, so that warm-up affects both equally
            times[name].append(timed(partial(calls[name], question, 8)))
        info = index.info()
    return {
        "chunks": info.blocks,
        "shards": shards,
        "questions": questions,
        **{name: percentiles(found) for name, found in times.items()},
        "build_seconds": round(seconds, 1),
        "megabytes": round((info.vector_bytes + info.text_bytes) / 1e6, 1),
    }


def documents(count: int, seed: int = 0) -> Iterator[Document]:
    """Documents of one short block each, of words with a Zipf distribution, and titles of two rare ones."""
    rng, names = np.random.default_rng(seed), random.Random(seed)
    words: dict[str, None] = {}
    while len(words) < _WORDS:
        words[word(names, 3).lower()] = None
    vocabulary = np.array(list(words))
    share = 1 / (np.arange(_WORDS) + _COMMON)
    share /= share.sum()
    for first in range(0, count, _BATCH):
        held = min(_BATCH, count - first)
        drawn = vocabulary[rng.choice(_WORDS, (held, 2 * _SENTENCE), p=share)]
        titles = vocabulary[rng.integers(_WORDS // 2, _WORDS, (held, 2))]
        for place, (own, title) in enumerate(zip(drawn.tolist(), titles.tolist(), strict=True)):
            one, two = (" ".join(part).capitalize() + "." for part in (own[:_SENTENCE], own[_SENTENCE:]))
            chunk = Chunk(
                text=f"{one} {two}", title=" ".join(title).title(),
                sentences=((0, len(one)), (len(one) + 1, len(one) + 1 + len(two))),
            )  # fmt: skip
            yield Document(id=str(first + place), title=chunk.title, chunks=[chunk])


COLUMNS = ("chunks", "shards", "one pass p50 / p95 (ms)", "four steps p50 / p95 (ms)", "build (s)", "MB")


def cells(row: Mapping[str, Any]) -> list[str]:
    """A row of the table."""
    times = [f"{row[name]['p50']:.0f} / {row[name]['p95']:.0f}" for name in ("one_pass_ms", "four_steps_ms")]
    return [f"{row['chunks']:,}", str(row["shards"]), *times, f"{row['build_seconds']:.0f}", f"{row['megabytes']:,.0f}"]


def pages(result: Mapping[str, Any]) -> Iterator[str]:
    """The table in Markdown."""
    yield f"| {' | '.join(COLUMNS)} |"
    yield f"|{' ---: |' * len(COLUMNS)}"
    for row in result["latency"]:
        yield f"| {' | '.join(cells(row))} |"
