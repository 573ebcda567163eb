"""Trains the dense gate: a classifier of (question, working memory, block), apart from the loop (2602.08382, stage 3).

The label is the paper's: does the block hold supporting facts? The states come from the loop itself. For each question
the first states follow the evidence, one supporting block after another, and beside them a careless reader that also
keeps what it should not. In the second round the gate trained so far drives, and what it meets is added: it is judged
later on states of its own making, so it has to have seen them.

Questions are split once into training, selection (calibration and threshold) and validation (the reported figures).
"""

import hashlib
import itertools
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from compmem.config import RecallConfig
from compmem.gate import GateHead
from compmem.index import MemoryIndex
from compmem.metrics import calibration_error, recall_at
from compmem.question import QuestionBench
from compmem.readers import ExtractiveReader
from compmem.schema import Document, Vectors, WorkingMemory
from compmem.tasks.multihop import Corpus, Question, leads, read_corpus

logger = logging.getLogger(__name__)

Labels = NDArray[np.float32]
Examples = tuple[Vectors, Labels]
"""Features `[blocks, features]` and whether each block is supporting `[blocks]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseGateTraining:
    """Settings of one training run, saved in its report."""

    questions: Path
    """Multi-hop questions with supporting paragraphs; see `compmem.tasks.multihop`."""
    out: Path
    """Folder for `dense_gate.safetensors` and `dense_gate.json`."""
    distractors: Path | None = None
    """Pages (`{"title", "text"}` lines) whose first paragraphs join the corpus."""
    distractor_count: int = 7000
    dataset_weights: dict[str, float] = field(default_factory=dict)
    """How much an example of a set counts; 1 where it is not named."""
    small_worlds: tuple[int, ...] = (1, 5, 25)
    """Questions whose paragraphs make an index of their own, in turn: the gate has to serve small indexes too."""
    steps: int = 4
    """Steps of each rollout."""
    rounds: int = 2
    """Rounds of rollouts; from the second on, the gate trained so far drives."""
    hidden: int = 64
    epochs: int = 12
    batch: int = 1024
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    seed: int = 0
    cache: Path | None = None
    """Folder of the index over the corpus, reused where it exists."""


def train(settings: DenseGateTraining) -> dict[str, Any]:
    """Trains, calibrates, chooses the threshold, writes weights and report; returns the report.

    Raises:
        ValueError: A data file has a broken line.
    """
    began = time.monotonic()
    extra = itertools.islice(leads(settings.distractors), settings.distractor_count) if settings.distractors else ()
    corpus = read_corpus(settings.questions, extra=extra)
    index = _index(settings, corpus)
    parts = split_questions(corpus.questions)
    rng = np.random.default_rng(settings.seed)
    examples: dict[str, list[Examples]] = defaultdict(list)
    head: GateHead | None = None
    for number in range(settings.rounds):
        for question in [*parts["training"], *parts["selection"], *parts["validation"]]:
            examples[question.id].append(states(index, question, rng, head, settings.steps))
        for small, questions in small_worlds(index, settings, parts, rng):
            for question in questions:
                examples[question.id].append(states(small, question, rng, head, settings.steps))
            small.close()
        head = fit(settings, [(q, e) for q in parts["training"] for e in examples[q.id]])
        logger.info("round %d: %d examples", number, sum(len(y) for es in examples.values() for _, y in es))
    assert head is not None
    calibrate(head, [e for q in parts["selection"] for e in examples[q.id]])
    head.threshold, sweep = choose_threshold(index, head, parts["selection"])
    report = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "passages": len(corpus.passages),
        "questions": {name: len(part) for name, part in parts.items()},
        "threshold": head.threshold,
        "threshold_sweep": sweep,
        "validation": validate(index, head, parts["validation"], examples),
        "seconds": round(time.monotonic() - began),
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    head.save(settings.out / "dense_gate.safetensors")
    (settings.out / "dense_gate.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def split_questions(questions: Sequence[Question]) -> dict[str, list[Question]]:
    """Training (80 %), selection (10 %) and validation (10 %), by a hash of the id."""
    parts: dict[str, list[Question]] = {"training": [], "selection": [], "validation": []}
    for question in questions:
        tenth = hashlib.sha256(question.id.encode()).digest()[0] % 10
        parts["selection" if tenth == 8 else "validation" if tenth == 9 else "training"].append(question)
    return parts


def small_worlds(
    index: MemoryIndex, settings: DenseGateTraining, parts: dict[str, list[Question]], rng: np.random.Generator
) -> Iterator[tuple[MemoryIndex, list[Question]]]:
    """Indexes over the own paragraphs of a few questions each, and those questions; no part shares one with another."""
    for part in parts.values():
        left = [part[i] for i in rng.permutation(len(part))]
        for size in itertools.cycle(settings.small_worlds):
            group, left = left[:size], left[size:]
            if not group:
                break
            yield _copy(index, sorted(frozenset[int]().union(*(q.own for q in group)))), group


def _copy(index: MemoryIndex, passages: Sequence[int]) -> MemoryIndex:
    """An index over some of the passages, with the vectors that they have."""
    small = MemoryIndex.create(None, index.config)
    with index.store.snapshot() as snapshot:
        blocks = [snapshot.blocks(snapshot.document_blocks(str(p))) for p in passages]
    small.store.add([
        (Document(id=str(p), title=own[0].chunk.title, chunks=[b.chunk for b in own]), own)
        for p, own in zip(passages, blocks, strict=True)
    ])  # fmt: skip
    return MemoryIndex(small.store, index.config, encoder=index.encoder, gate=index.gate)


def states(
    index: MemoryIndex, question: Question, rng: np.random.Generator, head: GateHead | None, steps: int
) -> Examples:
    """Examples from the states of two rollouts of one question: one along the evidence, one that errs."""
    with index.bench(question.question, None, RecallConfig()) as bench:
        found = [*_rollout(bench, question, rng, head, steps, errs=False)] if head is None else []
        found += _rollout(bench, question, rng, head, steps, errs=True)
    return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


def _rollout(
    bench: QuestionBench, question: Question, rng: np.random.Generator, head: GateHead | None, steps: int, *, errs: bool
) -> Iterator[Examples]:
    reader, memory, read = ExtractiveReader(bench.viewer), WorkingMemory(), set[int]()
    for _ in range(steps + 1):
        blocks = [n for n in bench.propose(memory.text) if n not in read]
        if not blocks:
            return
        x = bench.features(memory.text, blocks)
        gold = np.array([_number(bench, n) in question.gold for n in blocks], dtype=np.float32)
        yield x, gold
        right = np.flatnonzero(gold)
        if head is not None:
            with torch.inference_mode():
                logits = head(torch.from_numpy(x)).numpy()
            pick = int(np.argmax(logits + 0.5 * rng.gumbel(size=len(logits))))
        elif len(right) and (not errs or rng.random() < 0.5):
            pick = int(rng.choice(right))
        elif errs:
            pick = int(rng.integers(min(8, len(blocks))))
        else:
            return
        read.add(blocks[pick])
        reading = reader.read(question.question, memory, bench.fetch([blocks[pick]]))
        memory = reading.memory if reading.update else memory


def fit(settings: DenseGateTraining, examples: Sequence[tuple[Question, Examples]]) -> GateHead:
    """A gate trained on these examples by binary cross-entropy."""
    torch.manual_seed(settings.seed)
    x = torch.from_numpy(np.concatenate([e[0] for _, e in examples]))
    y = torch.from_numpy(np.concatenate([e[1] for _, e in examples]))
    counts = np.concatenate([
        np.full(len(e[1]), settings.dataset_weights.get(q.dataset, 1.0), dtype=np.float32) for q, e in examples
    ])  # fmt: skip
    weight = torch.from_numpy(counts)
    head = GateHead(settings.hidden)
    head.mean.copy_(x.mean(0))
    head.scale.copy_(x.std(0) + 1e-3)
    optimizer = torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    total = settings.epochs * -(-len(x) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=total)
    for _ in range(settings.epochs):
        for rows in torch.split(torch.randperm(len(x)), settings.batch):
            loss = F.binary_cross_entropy_with_logits(head(x[rows]), y[rows], weight=weight[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return head.eval()


def calibrate(head: GateHead, examples: Sequence[Examples]) -> None:
    """Sets the slope and bias of the gate's logits by maximum likelihood (Platt's scaling)."""
    x = torch.from_numpy(np.concatenate([e[0] for e in examples]))
    y = torch.from_numpy(np.concatenate([e[1] for e in examples]))
    with torch.no_grad():
        logits = head(x)
    scale = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([scale], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(scale[0] * logits + scale[1], y)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    head.calibration.copy_(scale.detach())


def choose_threshold(
    index: MemoryIndex, head: GateHead, questions: Sequence[Question]
) -> tuple[float, list[dict[str, float]]]:
    """The highest threshold whose recall@5 is within 0.5 points of the best one's."""
    sweep = []
    gated = _with_gate(index, head)
    for threshold in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5):
        ranks = [_ranked(gated, q, RecallConfig(threshold=threshold)) for q in questions]
        recall = 100 * float(np.mean([recall_at(r, q.gold, 5) for r, q in zip(ranks, questions, strict=True)]))
        sweep.append({"threshold": threshold, "recall@5": round(recall, 2)})
    best = max(s["recall@5"] for s in sweep)
    return max(s["threshold"] for s in sweep if s["recall@5"] >= best - 0.5), sweep


def validate(
    index: MemoryIndex, head: GateHead, questions: Sequence[Question], examples: dict[str, list[Examples]]
) -> dict[str, Any]:
    """The figures on questions that neither training nor selection saw."""
    held = [e for q in questions for e in examples[q.id]]
    x, y = np.concatenate([e[0] for e in held]), np.concatenate([e[1] for e in held])
    with torch.inference_mode():
        p = head.probabilities(x)
    said = p >= head.threshold
    gated = _with_gate(index, head)
    recalls: dict[str, dict[str, float]] = {}
    for name in sorted({q.dataset for q in questions}):
        own = [q for q in questions if q.dataset == name]
        ranks = [_ranked(gated, q, RecallConfig(threshold=head.threshold)) for q in own]
        recalls[name] = {
            f"recall@{k}": round(
                100 * float(np.mean([recall_at(r, q.gold, k) for r, q in zip(ranks, own, strict=True)])), 1
            )
            for k in (2, 5, 10)
        }
    return {
        "examples": len(y),
        "positive": round(float(y.mean()), 4),
        "calibration_error": round(calibration_error(p, y), 4),
        "precision": round(float(y[said].mean()) if said.any() else 0.0, 3),
        "recall": round(float(said[y == 1].mean()), 3),
        "questions": recalls,
    }


def _ranked(index: MemoryIndex, question: Question, config: RecallConfig) -> list[int]:
    return [int(r.chunk.document_id) for r in index.recall(question.question, 10, config=config)]


def _with_gate(index: MemoryIndex, head: GateHead) -> MemoryIndex:
    return MemoryIndex(index.store, index.config, encoder=index.encoder, gate=head)


def _number(bench: QuestionBench, block: int) -> int:
    return int(bench.fetch([block])[0].chunk.document_id)


def _index(settings: DenseGateTraining, corpus: Corpus) -> MemoryIndex:
    if settings.cache is not None and settings.cache.exists():
        return _with_gate(MemoryIndex.open(settings.cache), GateHead(settings.hidden))
    index = MemoryIndex.create(settings.cache)
    index.add(corpus.documents(), show_progress=True)
    return _with_gate(index, GateHead(settings.hidden))
