"""Gold passages found: first-stage baselines and the full loop side by side in one run, passage = document."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from compmem.config import IndexConfig, RecallConfig
from compmem.drivers import gathered, run
from compmem.index import MemoryIndex
from compmem.readers import ExtractiveReader
from compmem.reasoner import gather
from compmem.schema import Recall
from compmem_research.bench import rankings
from compmem_research.metrics import bootstrap_interval, recall_at
from compmem_research.tasks.multihop import Corpus, Question, read_corpus

KS = (2, 5, 10)

SAMPLED = 200
"""Questions on which losses and cutoffs are counted."""

CUTOFFS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Scores below which a caller may drop what was recalled."""

System = Callable[[MemoryIndex, str, int], list[int]]
"""Passages for a question, best first: `(index, question, k) -> document numbers`."""


def measure(
    data: Path, corpus: Path | None = None, *, limit: int | None = None, index_folder: Path | None = None
) -> dict[str, Any]:
    """Recall@2, @5 and @10 in per cent and seconds per question of each system.

    Args:
        data: Questions; see `compmem_research.tasks.multihop`.
        corpus: Passages, where the questions name them by title. None: the union of the questions' paragraphs.
        limit: Only the first so many questions, over the whole corpus.
        index_folder: Where the index is kept and found again. None: a temporary one.

    Raises:
        ValueError: A data file has a broken line.
    """
    task = read_corpus(data, corpus)
    index, seconds = _index(task, index_folder)
    questions = task.questions[:limit]
    with index:
        index.recall(questions[0].question, 2)  # loads the models, outside every system's time
        systems = {name: _run(name, system, index, questions) for name, system in SYSTEMS.items()}
        return {
            "data": data.name,
            "questions": len(questions),
            "passages": len(task.passages),
            "index_seconds": seconds,
            "systems": systems,
            "losses": losses(index, questions[:SAMPLED]),
            "cutoffs": cutoffs(index, questions[:SAMPLED]),
        }


def losses(index: MemoryIndex, questions: Sequence[Question]) -> dict[str, float]:
    """Which part of the loop loses gold passages: shares of them, in per cent, that each part lets through."""
    shares: dict[str, list[float]] = {"proposed_at_first": [], "proposed_ever": [], "read": []}
    for question in track(questions, "losses", transient=True):
        with index.bench(question.question, None, RecallConfig()) as bench:
            first = bench.propose("")
            steps = gather(bench, RecallConfig(), bench.threshold)
            found = run(gathered(question.question, steps, ExtractiveReader(bench.viewer)))
            read = [r.block for s in found.steps for r in s.recalls]
            for name, blocks in zip(shares, (first, list(found.scores), read), strict=True):
                held = question.gold & set(_documents(bench.fetch(blocks)))
                shares[name].append(len(held) / len(question.gold))
    return {name: round(100 * float(np.mean(values)), 1) for name, values in shares.items()}


def cutoffs(index: MemoryIndex, questions: Sequence[Question]) -> list[dict[str, float | None]]:
    """What a score is worth: for each cutoff, how much of the ten best recalls at or above it is gold, in per cent.

    `kept` is the share of the gold passages among them, `empty` that of the questions left with nothing.
    """
    scored = []
    for question in track(questions, "cutoffs", transient=True):
        recalls = index.recall(question.question, max(KS))
        scored.append([(r.score, _document(r) in question.gold) for r in recalls])
    total = sum(len(q.gold) for q in questions)
    rows: list[dict[str, float | None]] = []
    for cutoff in CUTOFFS:
        left = [[gold for score, gold in own if score >= cutoff] for own in scored]
        kept, right = sum(map(len, left)), sum(map(sum, left))
        rows.append({
            "cutoff": cutoff,
            "precision": round(100 * right / kept, 1) if kept else None,
            "kept": round(100 * right / total, 1),
            "empty": round(100 * sum(not own for own in left) / len(left), 1),
        })  # fmt: skip
    return rows


def ranked(rank: rankings.Rank) -> System:
    """The passages of a ranking by the question alone."""

    def system(index: MemoryIndex, question: str, k: int) -> list[int]:
        with index.bench(question, None, RecallConfig()) as bench:
            return _documents(bench.fetch(rank(bench, k)))

    return system


def one_shot_gate(index: MemoryIndex, question: str, k: int) -> list[int]:
    """Candidates and gate with an empty working memory."""
    return [_document(r) for r in index.recall(question, k, config=RecallConfig(max_steps=1, reask=False))]


def loop(index: MemoryIndex, question: str, k: int) -> list[int]:
    """The full loop with the extractive reader, at its default settings."""
    return [_document(r) for r in index.recall(question, k)]


SYSTEMS: dict[str, System] = {
    "dense": ranked(rankings.dense),
    "bm25": ranked(rankings.bm25),
    "fused": ranked(rankings.fused),
    "one-shot gate": one_shot_gate,
    "loop": loop,
}


def _run(name: str, system: System, index: MemoryIndex, questions: Sequence[Question]) -> dict[str, Any]:
    began = time.perf_counter()
    ranks = [system(index, q.question, max(KS)) for q in track(questions, name, transient=True)]
    seconds = (time.perf_counter() - began) / len(questions)
    out: dict[str, Any] = {}
    for k in KS:
        values = [100 * recall_at(r, q.gold, k) for r, q in zip(ranks, questions, strict=True)]
        low, high = bootstrap_interval(values)
        out[f"recall@{k}"] = round(float(np.mean(values)), 1)
        out[f"recall@{k} 95%"] = [round(low, 1), round(high, 1)]
    return {**out, "seconds_per_question": round(seconds, 4)}


def _index(task: Corpus, folder: Path | None) -> tuple[MemoryIndex, float]:
    if folder is not None and folder.exists():
        return MemoryIndex.open(folder), 0.0
    began = time.perf_counter()
    index = MemoryIndex.create(folder, IndexConfig())
    index.add(task.documents(), show_progress=True)
    return index, round(time.perf_counter() - began, 1)


def _document(recall: Recall) -> int:
    return int(recall.chunk.document_id)


def _documents(blocks: Sequence[Any]) -> list[int]:
    return list(dict.fromkeys(int(b.chunk.document_id) for b in blocks))
