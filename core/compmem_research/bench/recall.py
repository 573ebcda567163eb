"""Recall of gold passages by first-stage baselines and the full loop in one run; a passage is a document."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from compmem.config import LoopConfig, RuntimeConfig
from compmem.index import MemoryIndex
from compmem.loop.drivers import run, run_loop
from compmem.loop.loop import recall_loop
from compmem.readers import ExtractiveReader
from compmem_research.bench.retrieval import DEPTH, SYSTEMS, ask, documents, figures, kept_index
from compmem_research.tasks.multihop import Question, read_corpus

SAMPLED = 200
"""Number of questions for losses and cutoffs."""

CUTOFFS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Scores below which a caller may drop results."""


def measure(
    data: Path,
    corpus: Path | None = None,
    *,
    limit: int | None = None,
    index_folder: Path | None = None,
    gate: Path | None = None,
) -> dict[str, Any]:
    """The scores of each system; see `retrieval.figures`.

    If some questions have no answer, it is also measured whether every system says that it found nothing.

    Args:
        data: Questions; see `compmem_research.tasks.multihop`. A question without a supporting paragraph has no answer.
        corpus: Passages, if the questions name them by title. None: the union of the questions' paragraphs.
        limit: Only this many first questions, over the whole corpus.
        index_folder: Folder in which the index is stored and reused. None: a temporary one.
        gate: Weights of another dense gate. None: the shipped one.

    Raises:
        ValueError: A data file has a broken line, or no question.
    """
    task = read_corpus(data, corpus)
    questions = task.questions[:limit]
    if not questions:
        raise ValueError(f"{data}: no question to ask")
    answered = [q for q in questions if q.gold]
    silence = len(answered) < len(questions)
    runtime = RuntimeConfig(gate=None if gate is None else str(gate))
    index, seconds = kept_index(task, index_folder, runtime=runtime)
    with index:
        index.recall(questions[0].question, 2)  # loads the models, so that no system's time includes it
        systems = {n: figures(ask(n, index, questions, silence=silence), questions) for n in SYSTEMS}
        return {
            "data": data.name,
            "questions": len(questions),
            "unanswerable": len(questions) - len(answered),
            "passages": len(task.passages),
            "index_seconds": seconds,
            "systems": systems,
            "losses": losses(index, answered[:SAMPLED]),
            "cutoffs": cutoffs(index, answered[:SAMPLED]),
        }


def losses(index: MemoryIndex, questions: Sequence[Question]) -> dict[str, float]:
    """Share of gold passages in per cent that each part of the loop passes on, to see which part loses them.

    Empty if there are no questions.
    """
    shares: dict[str, list[float]] = {"proposed_at_first": [], "proposed_ever": [], "read": []}
    for question in track(questions, "losses", transient=True):
        with index.question_context(question.question) as context:
            first = context.propose("")
            steps = recall_loop(context, LoopConfig(), context.threshold)
            found = run(run_loop(question.question, steps, ExtractiveReader(context.analyzer)))
            read = [r.block for s in found.steps for r in s.recalls]
            for name, blocks in zip(shares, (first, list(found.scores), read), strict=True):
                held = question.gold & set(documents(context.fetch(blocks)))
                shares[name].append(len(held) / len(question.gold))
    return {name: round(100 * float(np.mean(values)), 1) for name, values in shares.items() if values}


def cutoffs(index: MemoryIndex, questions: Sequence[Question]) -> list[dict[str, float | None]]:
    """For each cutoff, the share of gold passages among the ten best results at or above it, in per cent.

    `kept` is the share of the gold passages among them, `empty` that of the questions without results. Empty if there
    are no questions.
    """
    if not questions:
        return []
    scored = []
    for question in track(questions, "cutoffs", transient=True):
        recalls = index.recall(question.question, DEPTH)
        scored.append([(r.score, int(r.chunk.document_id) in question.gold) for r in recalls])
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
