"""Trains the dense gate: a classifier of (question, working memory, block), apart from the loop (2602.08382, stage 3).

The label is the paper's: does the block hold supporting facts? Beside each block's own probability, the loss looks at
the share that the supporting blocks of a state have among all of it, because the loop reads the best first. The states
come from the loop itself. For each question the first states follow the evidence, one supporting block after another,
and beside them a careless reader that also keeps what it should not. In the second round the gate trained so far
drives, and what it meets is added: it is judged later on states of its own making, so it has to have seen them. Beside
the sets' own questions stand composed ones, in a corpus of their own (`compmem_research.tasks.composed`): they are
many, and what connects their hops is seldom a title.

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
from torch import nn

from compmem.config import RecallConfig
from compmem.gate import Digest, GateHead, digest, features
from compmem.index import MemoryIndex
from compmem.question import QuestionBench
from compmem.readers import ExtractiveReader
from compmem.schema import Document, Vectors, WorkingMemory
from compmem_research.metrics import calibration_error, recall_at
from compmem_research.tasks.composed import compose, passage_of
from compmem_research.tasks.multihop import Corpus, Question, corpus_of, leads, read_corpus
from compmem_research.tasks.singlehop import read_singlehop
from compmem_research.training.gating.calibration import platt

logger = logging.getLogger(__name__)

COMPOSED_OF = ("nq_qed", "squadshifts_new_wiki")
"""Sets of single questions that ask for facts about named things."""

Labels = NDArray[np.float32]
Examples = tuple[Vectors, Labels]
"""One state's blocks: features `[blocks, features]` and whether each is supporting `[blocks]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseGateTraining:
    """Settings of one training run, saved in its report."""

    questions: Path
    """Multi-hop questions with supporting paragraphs; see `compmem_research.tasks.multihop`."""
    out: Path
    """Folder for `dense_gate.safetensors` and `dense_gate.json`."""
    distractors: Path | None = None
    """Pages (`{"title", "text"}` lines) whose first paragraphs join the corpus."""
    distractor_count: int = 7000
    singlehop: Path | None = None
    """Questions about one text each, of which further questions are composed; see `tasks.singlehop`."""
    composed: int = 400
    """Composed questions; all of them are for training."""
    per_set: int | None = None
    """Most training questions of one set. None: all."""
    threshold: float | None = None
    """The gate's own threshold, chosen by cross-validation elsewhere. None: chosen on the selection questions."""
    dataset_weights: dict[str, float] = field(default_factory=dict)
    """How much an example of a set counts; 1 where it is not named."""
    small_worlds: tuple[int, ...] = (1, 5, 25)
    """Questions whose paragraphs make an index of their own, in turn: the gate has to serve small indexes too."""
    steps: int = 4
    """Steps of each rollout."""
    rounds: int = 2
    """Rounds of rollouts; from the second on, the gate trained so far drives."""
    hidden: int = 64
    heads: int = 2
    """Networks trained apart whose mean is the gate."""
    epochs: int = 12
    batch: int = 16
    """States in a batch."""
    ranking: float = 0.3
    """How much the share of a state's supporting blocks counts beside the probability of each block."""
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
    index = _index(settings, corpus, settings.cache)
    parts = split_questions(corpus.questions)
    parts["training"] = _at_most(parts["training"], settings.per_set)
    rng = np.random.default_rng(settings.seed)
    composed = _composed(settings, rng)
    examples: dict[str, list[Examples]] = defaultdict(list)
    head: GateHead | None = None
    for number in range(settings.rounds):
        for question in [*parts["training"], *parts["selection"], *parts["validation"]]:
            examples[question.id].extend(states(index, question, rng, head, settings.steps))
        for small, questions in small_worlds(index, settings, parts, rng):
            for question in questions:
                examples[question.id].extend(states(small, question, rng, head, settings.steps))
            small.close()
        if composed is not None:
            for question in composed[1]:
                examples[question.id].extend(states(composed[0], question, rng, head, settings.steps, along=False))
        logger.info("round %d: %d questions rolled out", number, len(examples))
        taught = [*parts["training"], *(composed[1] if composed else ())]
        head = fit(settings, [(q, e) for q in taught for e in examples[q.id]])
        logger.info("round %d: %d examples", number, sum(len(y) for es in examples.values() for _, y in es))
    assert head is not None
    calibrate(head, [e for q in parts["selection"] for e in examples[q.id]])
    sweep: list[dict[str, float]] = []
    if settings.threshold is not None:
        head.threshold = settings.threshold
    else:
        head.threshold, sweep = choose_threshold(index, head, parts["selection"])
    report = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "passages": len(corpus.passages),
        "questions": {name: len(part) for name, part in parts.items()},
        "composed": 0 if composed is None else len(composed[1]),
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


def _at_most(questions: Sequence[Question], most: int | None) -> list[Question]:
    held: dict[str, int] = defaultdict(int)
    kept = []
    for question in questions:
        held[question.dataset] += 1
        if most is None or held[question.dataset] <= most:
            kept.append(question)
    return kept


def _composed(settings: DenseGateTraining, rng: np.random.Generator) -> tuple[MemoryIndex, list[Question]] | None:
    """Composed questions and the index over their passages and as many that answer none of them."""
    if settings.singlehop is None:
        return None
    about = [q for q in read_singlehop(settings.singlehop) if q.dataset in COMPOSED_OF]
    pages = list(leads(settings.distractors)) if settings.distractors else []
    records = compose(pages, about, rng, most=settings.composed)
    apart = [passage_of(about[i]) for i in rng.permutation(len(about))[: 2 * settings.composed]]
    corpus = corpus_of(((r["id"], r) for r in records), extra=apart)
    cache = settings.cache.with_name(f"{settings.cache.name}-composed") if settings.cache else None
    return _index(settings, corpus, cache), list(corpus.questions)


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
    index: MemoryIndex,
    question: Question,
    rng: np.random.Generator,
    head: GateHead | None,
    steps: int,
    *,
    along: bool = True,
) -> list[Examples]:
    """The states of two rollouts of one question: one along the evidence, where it is asked for, and one that errs."""
    with index.bench(question.question, None, RecallConfig()) as bench:
        found = [*_rollout(bench, question, rng, head, steps, errs=False)] if head is None and along else []
        found += _rollout(bench, question, rng, head, steps, errs=True)
    return found


def _rollout(
    bench: QuestionBench, question: Question, rng: np.random.Generator, head: GateHead | None, steps: int, *, errs: bool
) -> Iterator[Examples]:
    reader, memory, read = ExtractiveReader(bench.viewer), WorkingMemory(), set[int]()
    digests: dict[int, Digest] = {}
    for _ in range(steps + 1):
        blocks = [n for n in bench.propose(memory.text) if n not in read]
        if not blocks:
            return
        new = [n for n in blocks if n not in digests]
        digests.update(zip(new, map(digest, bench.fetch(new)), strict=True))
        x = features(bench.viewer.view(memory.text), [digests[n] for n in blocks])
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
    """A gate trained on these states: the mean of networks that differ in their seed."""
    x = torch.from_numpy(np.concatenate([x for _, (x, _) in examples]))
    y = torch.from_numpy(np.concatenate([y for _, (_, y) in examples]))
    sizes = torch.tensor([len(y) for _, (_, y) in examples])
    counts = torch.tensor([settings.dataset_weights.get(q.dataset, 1.0) for q, _ in examples])
    mean, scale = x.mean(0), x.std(0) + 1e-3
    data = _States((x - mean) / scale, y, sizes, counts)
    heads = [_network(settings, data, settings.seed + number) for number in range(settings.heads)]
    for head in heads:
        head.mean.copy_(mean)
        head.scale.copy_(scale)
    return mean_of(heads)


def mean_of(heads: Sequence[GateHead]) -> GateHead:
    """One gate whose logits are the mean of theirs, before calibration; they share the scale of their features."""
    linears = [[layer for layer in h.layers if isinstance(layer, nn.Linear)] for h in heads]
    head = GateHead(sum(own[0].out_features for own in linears), heads[0].threshold)
    head.mean.copy_(heads[0].mean)
    head.scale.copy_(heads[0].scale)
    first, *middle, last = (layer for layer in head.layers if isinstance(layer, nn.Linear))
    firsts, *middles, lasts = zip(*linears, strict=True)
    with torch.no_grad():
        first.weight.copy_(torch.cat([layer.weight for layer in firsts]))
        for layer, own in zip(middle, middles, strict=True):
            layer.weight.copy_(torch.block_diag(*(part.weight for part in own)))  # type: ignore[no-untyped-call]
        last.weight.copy_(torch.cat([layer.weight for layer in lasts], dim=1) / len(heads))
        for layer, own in zip((first, *middle), (firsts, *middles), strict=True):
            layer.bias.copy_(torch.cat([part.bias for part in own]))
        last.bias.copy_(torch.stack([layer.bias for layer in lasts]).mean(0))
    return head.eval()


@dataclass(frozen=True, slots=True)
class _States:
    """States one after another."""

    x: torch.Tensor
    """Scaled features `[blocks, features]`."""
    y: torch.Tensor
    """`[blocks]`."""
    sizes: torch.Tensor
    """Blocks of each state."""
    counts: torch.Tensor
    """How much each state counts."""


def _network(settings: DenseGateTraining, data: _States, seed: int) -> GateHead:
    torch.manual_seed(seed)
    head = GateHead(settings.hidden)
    optimizer = torch.optim.AdamW(head.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    total = settings.epochs * -(-len(data.sizes) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=total)
    blocks = torch.split(torch.arange(len(data.x)), data.sizes.tolist())
    for _ in range(settings.epochs):
        for chosen in torch.split(torch.randperm(len(data.sizes)), settings.batch):
            rows = torch.cat([blocks[i] for i in chosen.tolist()])
            state = torch.repeat_interleave(torch.arange(len(chosen)), data.sizes[chosen])
            logits = head.layers(data.x[rows]).squeeze(-1)
            loss = state_loss(logits, data.y[rows], state, data.counts[chosen], settings.ranking)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return head.eval()


def state_loss(
    logits: torch.Tensor, y: torch.Tensor, state: torch.Tensor, counts: torch.Tensor, ranking: float
) -> torch.Tensor:
    """Binary cross-entropy of each block, and that of a state's supporting blocks in a softmax over the state.

    Args:
        logits: `[blocks]`.
        y: `[blocks]`.
        state: The state of each block, `[blocks]`.
        counts: How much each state counts, `[states]`.
        ranking: How much the second part counts.
    """
    apart = F.binary_cross_entropy_with_logits(logits, y, weight=counts[state])
    none = torch.zeros(len(counts))
    top = none.scatter_reduce(0, state, logits.detach(), "amax", include_self=False)
    whole = top + torch.log(none.index_add(0, state, torch.exp(logits - top[state])))
    supporting = none.index_add(0, state, y)
    lost = none.index_add(0, state, (whole[state] - logits) * y) / supporting.clamp(min=1)
    return apart + ranking * (lost * counts).sum() / counts.sum()


def calibrate(head: GateHead, examples: Sequence[Examples]) -> None:
    """Sets the slope and bias of the gate's logits by maximum likelihood (Platt's scaling)."""
    x = torch.from_numpy(np.concatenate([e[0] for e in examples]))
    y = torch.from_numpy(np.concatenate([e[1] for e in examples]))
    with torch.no_grad():
        logits = head(x)
    head.calibration.copy_(torch.tensor(platt(logits, y, decay=0.0)))


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


def _index(settings: DenseGateTraining, corpus: Corpus, cache: Path | None) -> MemoryIndex:
    if cache is not None and cache.exists():
        return _with_gate(MemoryIndex.open(cache), GateHead(settings.hidden))
    index = MemoryIndex.create(cache)
    index.add(corpus.documents(), show_progress=True)
    return _with_gate(index, GateHead(settings.hidden))
