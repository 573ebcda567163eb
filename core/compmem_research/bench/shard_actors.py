"""Shards asked through Ray actors beside the same shards in one process: what they find, and what that costs."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import track

from compmem.index import MemoryIndex
from compmem_research.bench.clock import tree_seconds
from compmem_research.bench.retrieval import kept_index
from compmem_research.bench.sharded import Found, compared, divided, find
from compmem_research.tasks.multihop import read_corpus

if TYPE_CHECKING:
    from compmem.shard_actors import ActorIndex

NOTE = (
    "The same shards, opened in one process and in Ray actors on the same machine, asked in turns after three "
    "questions that are not counted. Milliseconds are means: one process / asked through actors. Processor time counts "
    "the actors and Ray's own processes; the clock of such processes ticks in hundredths of a second."
)
"""For readers of the result."""

WARM = 3
"""Questions that are asked once before any is counted."""


def measure(
    data: Path,
    corpus: Path | None = None,
    *,
    shards: Sequence[int] = (4,),
    actors: int = 4,
    limit: int | None = 40,
    minutes: float | None = None,
    index_folder: Path | None = None,
) -> dict[str, Any]:
    """Questions with the same candidates, scores and answer through actors, with times and calls a question.

    Arguments and errors are those of `sharded.measure`; `actors` is the number of actors, at most one a shard.
    """
    from compmem import distributed

    task = read_corpus(data, corpus)
    questions = [question.question for question in task.questions[:limit]]
    rows = []
    with ExitStack() as held:
        whole = held.enter_context(kept_index(task, index_folder)[0])
        folder = Path(held.enter_context(TemporaryDirectory()))
        os.environ.setdefault("RAY_worker_niceness", str(os.nice(0)))  # by default Ray's processes give way to others
        held.enter_context(distributed.ray_cluster("local"))
        until = None if minutes is None else time.monotonic() + 60 * minutes
        for n in shards:
            with divided(whole, folder / str(n), n) as one, distributed.open_index(one.path, actors=actors) as many:
                rows.append({"shards": n, "actors": min(n, actors), **_beside(one, many, questions, until)})
    return {"data": data.name, "passages": len(task.passages), "shard_actors": rows}


def pages(result: Mapping[str, Any]) -> Iterator[str]:
    """The table in Markdown."""
    columns = list(result["shard_actors"][0])
    yield f"| {' | '.join(name.replace('_', ' ') for name in columns)} |"
    yield f"|{' --- |' * len(columns)}"
    for row in result["shard_actors"]:
        shown = (" / ".join(map(str, v.values())) if isinstance(v, Mapping) else str(v) for v in row.values())
        yield f"| {' | '.join(shown)} |"


def _beside(one: MemoryIndex, many: "ActorIndex", questions: Sequence[str], until: float | None) -> dict[str, Any]:
    """How far two indexes agree, and the times of both."""
    for question in questions[:WARM]:
        find(one, question)
        find(many, question)
    pairs: list[tuple[Found, Found]] = []
    spent = np.zeros((2, 2))
    before = many.store.round_trips
    for question in track(questions, "questions", transient=True):
        if until is not None and time.monotonic() > until:
            break
        found = [_timed(index, question) for index in (one, many)]
        pairs.append((found[0][0], found[1][0]))
        spent += [times for _, times in found]
    means = (1000 * spent / max(len(pairs), 1)).round().astype(int).tolist()
    same = compared(pairs)
    del same["median_processor_ms"]
    named = [dict(zip(("one process", "actors"), column, strict=True)) for column in zip(*means, strict=True)]
    calls = round((many.store.round_trips - before) / max(len(pairs), 1), 1)
    return {**same, "calls_to_the_actors": calls, "processor_ms": named[0], "wall_ms": named[1]}


def _timed(index: MemoryIndex, question: str) -> tuple[Found, tuple[float, float]]:
    """What is found, and the seconds of all processors and of the clock."""
    busy, began = tree_seconds(os.getpid()), time.perf_counter()
    found = find(index, question)
    return found, (tree_seconds(os.getpid()) - busy, time.perf_counter() - began)
