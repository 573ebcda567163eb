"""Answers of one process by threads, with and without encoding their questions together."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from compmem.encoder import LoadedEncoder, MergedCalls
from compmem.gate import GateHead
from compmem.index import MemoryIndex
from compmem.loop import gates
from compmem.loop.blocks import BlockLoader
from compmem.loop.context import QuestionContext

NOTE = (
    "Threads of one process over one index share Python's interpreter lock; torch uses one thread in each. Alone "
    "and together take turns, and each figure is of all turns. Where the time of one thread goes is measured in the "
    "same run; a part does not contain the parts before it."
)
"""What a reader of a run has to know."""


def measure(
    index: Path, questions: Sequence[str], *, threads: Sequence[int] = (1, 2, 4, 8), turns: int = 2
) -> dict[str, Any]:
    """Answers a second and processor milliseconds an answer, for each number of threads.

    Args:
        index: Folder of the index.
        questions: The questions; all are answered in each turn.
        threads: Numbers of threads.
        turns: How often both ways take turns.
    """
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with MemoryIndex.open(index) as opened:
            for question in questions[: len(questions) // 4 + 1]:
                opened.answer(question)
            profile = _profile(opened, questions)
            rows = [{"threads": number, **_beside(opened, questions, number, turns)} for number in threads]
    finally:
        torch.set_num_threads(usual)
    return {
        "index": index.name,
        "questions": len(questions),
        "turns": turns,
        "milliseconds": profile,
        "by_threads": rows,
    }


def pages(result: Mapping[str, Any]) -> Iterator[str]:
    """The tables in Markdown."""
    yield f"{result['questions']} questions, {result['turns']} turns. Milliseconds of a question on one thread:"
    yield ""
    yield f"| {' | '.join(result['milliseconds'])} |"
    yield f"|{' ---: |' * len(result['milliseconds'])}"
    yield f"| {' | '.join(map(str, result['milliseconds'].values()))} |"
    yield ""
    yield "| threads | answers/s, alone | together | processor ms, alone | together | texts a pass, alone | together |"
    yield f"|{' ---: |' * 7}"
    for row in result["by_threads"]:
        ways = (row["alone"], row["together"])
        yield f"| {row['threads']} | {' | '.join(str(way[name]) for name in ways[0] for way in ways)} |"


def _beside(index: MemoryIndex, questions: Sequence[str], threads: int, turns: int) -> dict[str, Any]:
    """The figures of both ways."""
    found: dict[str, list[list[float]]] = {"alone": [], "together": []}
    for way in list(found) * turns:
        found[way].append(_turn(index, questions, threads, alone=way == "alone"))
    return {way: _figures(len(questions), rows) for way, rows in found.items()}


def _figures(questions: int, turns: Sequence[Sequence[float]]) -> dict[str, float]:
    seconds, busy, passes, texts = map(sum, zip(*turns, strict=True))
    answers = questions * len(turns)
    return {
        "answers_per_second": round(answers / seconds, 2),
        "processor_ms": round(1000 * busy / answers),
        "texts_per_pass": round(texts / passes, 2),
    }


def _turn(index: MemoryIndex, questions: Sequence[str], threads: int, *, alone: bool) -> list[float]:
    """Seconds, processor seconds, passes of the encoder and their texts."""
    sizes: list[int] = []
    run = MergedCalls.run

    def counted(self: MergedCalls, texts: Sequence[str]) -> Any:
        sizes.append(len(texts))
        return run(self, texts)

    with ExitStack() as held:
        held.enter_context(patch.object(MergedCalls, "run", counted))
        if alone:
            held.enter_context(patch.object(MergedCalls, "__call__", counted))
        busy, began = time.process_time(), time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(index.answer, questions))
        return [time.perf_counter() - began, time.process_time() - busy, len(sizes), sum(sizes)]


def _profile(index: MemoryIndex, questions: Sequence[str]) -> dict[str, float]:
    """Milliseconds of a question in each part, and in all."""
    spent: dict[str, float] = {}
    within: list[float] = []
    with ExitStack() as held:
        for part, functions in _parts(index).items():
            for place, name in functions:
                held.enter_context(_timed(place, name, part, spent, within))
        began = time.perf_counter()
        for question in questions:
            index.answer(question)
        spent["all"] = time.perf_counter() - began
    return {part: round(1000 * seconds / len(questions), 2) for part, seconds in spent.items()}


def _parts(index: MemoryIndex) -> dict[str, list[tuple[Any, str]]]:
    """Parts of a question's time, by the functions that they are spent in."""
    with index.store.snapshot() as snapshot:
        index_class = type(snapshot.lexical_index())
    return {
        "encoder": [(LoadedEncoder, "encode_query")],
        "word search": [(index_class, name) for name in ("bm25", "phrases", "blocks_by_name", "document_frequency")],
        "rest of the first stage": [(QuestionContext, "propose")],
        "blocks": [(BlockLoader, "windows")],
        "features of the gate": [(gates, "features")],
        "networks of the gate": [(GateHead, "first_pass"), (GateHead, "later_pass")],
    }


@contextmanager
def _timed(place: Any, name: str, part: str, spent: dict[str, float], within: list[float]) -> Iterator[None]:
    """Adds the seconds in a function to its part, without those in those of other parts that it calls.

    `within` holds, for each of these functions at work, the seconds of those that it called.
    """
    plain: Callable[..., Any] = getattr(place, name)
    spent.setdefault(part, 0.0)

    @wraps(plain)
    def timed(*given: Any, **named: Any) -> Any:
        began = time.perf_counter()
        within.append(0.0)
        try:
            return plain(*given, **named)
        finally:
            seconds = time.perf_counter() - began
            spent[part] += seconds - within.pop()
            if within:
                within[-1] += seconds

    with patch.object(place, name, timed):
        yield
