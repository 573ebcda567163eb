"""Whether an index in shards finds what one folder of the same blocks does: candidates, gate scores and answers."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.progress import track

from compmem.index import MemoryIndex
from compmem_research.bench.retrieval import kept_index
from compmem_research.tasks.multihop import read_corpus

CLOSE = 1e-4
"""Difference of two scores that are counted as the same."""

NOTE = (
    "The blocks of one folder copied into so many shards, and the first questions of the set. Milliseconds are of the "
    "processor: one folder / shards, one core, beside other work."
)
"""For readers of the result."""


@dataclass(frozen=True, slots=True)
class Found:
    """What an index finds for a question."""

    scores: dict[str, float]
    """Candidates in order, by chunk id, with the gate's scores."""
    answer: str
    sources: tuple[str, ...]
    seconds: float
    """Processor time."""


def measure(
    data: Path,
    corpus: Path | None = None,
    *,
    shards: Sequence[int] = (1, 2, 4, 8),
    limit: int | None = 200,
    minutes: float | None = None,
    index_folder: Path | None = None,
) -> dict[str, Any]:
    """Questions with the same candidates, scores and answer as one folder, for each number of shards.

    Args:
        data: Questions.
        corpus: Passages, if the questions name them by title.
        shards: Numbers of shards. The blocks of one folder are copied into each, so nothing is encoded twice.
        limit: Only this many first questions.
        minutes: No new question after so many minutes.
        index_folder: Folder in which the index in one folder is stored and reused. None: a temporary one.

    Raises:
        ValueError: A data file has a broken line.
    """
    task = read_corpus(data, corpus)
    began = time.monotonic()
    pairs: dict[int, list[tuple[Found, Found]]] = {n: [] for n in shards}
    with ExitStack() as held:
        whole = held.enter_context(kept_index(task, index_folder)[0])
        folder = Path(held.enter_context(TemporaryDirectory()))
        parted = {n: held.enter_context(divided(whole, folder / str(n), n)) for n in shards}
        for question in track(task.questions[:limit], "questions", transient=True):
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                break
            one = find(whole, question.question)
            for n, index in parted.items():
                pairs[n].append((one, find(index, question.question)))
    rows = [{"shards": n, **compared(found)} for n, found in pairs.items()]
    return {"data": data.name, "passages": len(task.passages), "sharded": rows}


def divided(index: MemoryIndex, folder: Path, shards: int) -> MemoryIndex:
    """The blocks of an index in a new index of so many shards."""
    made = MemoryIndex.create(folder, index.config, shards=shards)
    with index.store.snapshot() as snapshot:
        ids = [d.id for d in snapshot.documents()]
        for at in range(0, len(ids), 500):
            numbers = [(snapshot.document(i), snapshot.document_blocks(i)) for i in ids[at : at + 500]]
            made.store.add([(d, snapshot.blocks(own)) for d, own in numbers if d is not None])
    return made


def find(index: MemoryIndex, question: str) -> Found:
    """The first candidates, their scores and the answer."""
    began = time.process_time()
    with index.question_context(question) as context:
        proposed = context.propose("")
        names = [block.chunk.id for block in context.fetch(proposed)]
        scores = dict(zip(names, context.score("", proposed), strict=True))
    answer = index.answer(question)
    sources = tuple(source.chunk.id for source in answer.sources)
    return Found(scores, answer.text, sources, time.process_time() - began)


def compared(pairs: Sequence[tuple[Found, Found]]) -> dict[str, Any]:
    """How many pairs agree, and by how much scores differ at most."""
    both = [(one, many, one.scores.keys() & many.scores.keys()) for one, many in pairs]
    apart = [max((abs(one.scores[c] - many.scores[c]) for c in common), default=0.0) for one, many, common in both]
    seconds = np.array([[one.seconds, many.seconds] for one, many in pairs]).reshape(-1, 2)
    middle = np.median(seconds, axis=0) if len(seconds) else [0.0, 0.0]
    return {
        "questions": len(pairs),
        "same_candidates": sum(one.scores.keys() == many.scores.keys() for one, many in pairs),
        "same_order": sum(list(one.scores) == list(many.scores) for one, many in pairs),
        "scores_within_0.0001": sum(difference <= CLOSE for difference in apart),
        "largest_difference": float(f"{max(apart, default=0.0):.2g}"),
        "same_answer": sum(one.answer == many.answer for one, many in pairs),
        "same_sources": sum(one.sources == many.sources for one, many in pairs),
        "median_processor_ms": {"one folder": round(1000 * middle[0]), "shards": round(1000 * middle[1])},
    }


def pages(result: Mapping[str, Any]) -> Iterator[str]:
    """The table in Markdown."""
    columns = list(result["sharded"][0])
    yield f"| {' | '.join(name.replace('_', ' ') for name in columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in result["sharded"]:
        shown = {**row, "median_processor_ms": " / ".join(map(str, row["median_processor_ms"].values()))}
        yield f"| {' | '.join(map(str, shown.values()))} |"
