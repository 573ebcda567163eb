"""Systems that rank passages for a question, ours and the baselines, and their scores."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import track

from compmem.config import IndexConfig, LoopConfig, RecallConfig, RecallMethod, RuntimeConfig
from compmem.index import MemoryIndex
from compmem.schema import Encoder
from compmem_research.bench import rankings
from compmem_research.metrics import mean_figures, ndcg_at, recall_at
from compmem_research.tasks.multihop import Corpus, Question

KS = (2, 5, 10)

DEPTH = max(KS)
"""Blocks requested from a system."""

METRICS: Final[dict[str, Callable[[Sequence[int], frozenset[int]], float]]] = {
    **{f"recall@{k}": partial(recall_at, k=k) for k in KS},
    f"ndcg@{DEPTH}": partial(ndcg_at, k=DEPTH),
}
"""Scores of a ranking in [0, 1], shown in per cent."""


@dataclass(frozen=True, slots=True)
class System:
    """A system that ranks passages for a question."""

    rank: Callable[[MemoryIndex, str], list[int]]
    """Passages for a question, best first."""
    answers: RecallConfig | None = None
    """Settings of the answering loop. None: a plain ranking, which finds nothing only if it is empty."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a system for a question."""

    ranked: list[int]
    seconds: float
    silent: bool | None
    """Whether the system says that it found nothing; None if that was not measured."""


def _ranked(rank: rankings.Rank) -> System:
    def system(index: MemoryIndex, question: str) -> list[int]:
        with index.question_context(question) as context:
            return documents(context.fetch(rank(context, DEPTH)))

    return System(system)


def _recalled(method: RecallMethod, answers: RecallConfig) -> System:
    return System(lambda index, question: documents(index.recall(question, DEPTH, method=method)), answers)


BASELINE_RANKINGS: Final = ("dense", "bm25", "fused")

SYSTEMS: Final[dict[str, System]] = {
    "dense": _ranked(rankings.dense),
    "bm25": _ranked(rankings.bm25),
    "fused": _ranked(rankings.fused),
    "one-shot gate": _recalled("gate", LoopConfig(max_steps=1, requery=False)),
    "loop": _recalled("loop", RecallConfig()),
}
"""Plain one-shot retrieval; candidates and gate with an empty working memory; the loop with the extractive reader."""


def ask(name: str, index: MemoryIndex, questions: Sequence[Question], *, silence: bool) -> list[Outcome]:
    """The results of a system for each question.

    Args:
        name: One of `SYSTEMS`.
        index: The passages; a document's id is the passage's number.
        questions: The questions.
        silence: Whether to measure, without timing it, if the system says that nothing was found.
    """
    system, outcomes = SYSTEMS[name], []
    for question in track(questions, name, transient=True):
        began = time.perf_counter()
        ranked = system.rank(index, question.question)
        seconds = time.perf_counter() - began
        silent = None
        if silence and system.answers is None:
            silent = not ranked
        elif silence:
            silent = not index.answer(question.question, system.answers).found
        outcomes.append(Outcome(ranked, seconds, silent))
    return outcomes


def scores(metric: str, outcomes: Sequence[Outcome], questions: Sequence[Question]) -> list[float]:
    """The score of every question that has an answer, in per cent."""
    return [100 * METRICS[metric](o.ranked, q.gold) for o, q in zip(outcomes, questions, strict=True) if q.gold]


def figures(outcomes: Sequence[Outcome], questions: Sequence[Question]) -> dict[str, Any]:
    """The means of a system, in per cent with 95 % bootstrap intervals, and its seconds per question.

    `nothing_found` is the share of the questions without an answer for which it says that it found nothing,
    `false_alarms` that of the questions with an answer.
    """
    out: dict[str, Any] = {}
    for metric in METRICS:
        out.update(mean_figures(metric, scores(metric, outcomes, questions)))
    asked = [(100.0 * o.silent, q) for o, q in zip(outcomes, questions, strict=True) if o.silent is not None]
    out.update(mean_figures("nothing_found", [silent for silent, q in asked if not q.gold]))
    out.update(mean_figures("false_alarms", [silent for silent, q in asked if q.gold]))
    seconds = [o.seconds for o in outcomes]
    return {
        **out,
        "seconds_per_question": round(float(np.mean(seconds)), 4),
        "median_seconds": round(float(np.median(seconds)), 4),
    }


def kept_index(
    task: Corpus, folder: Path | None, encoder: str | Encoder | None = None, runtime: RuntimeConfig | None = None
) -> tuple[MemoryIndex, float]:
    """The index of a corpus, and the seconds to make it; an existing one in the folder is updated.

    Args:
        task: The corpus.
        folder: Folder in which the index is stored and reused. None: a temporary one.
        encoder: Instead of the default.
        runtime: Settings of this process, such as another gate.
    """
    began = time.perf_counter()
    if folder is not None and folder.exists():
        index = MemoryIndex.open(folder, encoder=encoder, runtime=runtime)
        index.delete([d.id for d in index.documents() if int(d.id) >= len(task.passages)])
    else:
        config = IndexConfig() if encoder is None else IndexConfig(encoder=encoder)
        index = MemoryIndex.create(folder, config, runtime=runtime)
    index.add(task.documents(), show_progress=True)
    return index, round(time.perf_counter() - began, 1)


def documents(found: Sequence[Any]) -> list[int]:
    """The passages of blocks or recalls, each once."""
    return list(dict.fromkeys(int(f.chunk.document_id) for f in found))
