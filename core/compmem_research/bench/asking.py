"""One question asked of one system, and everything that is measured of it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from compmem.config import LoopConfig
from compmem.drivers import gathered, run
from compmem.index import MemoryIndex
from compmem.question import QuestionBench
from compmem.reasoner import Gathered
from compmem.roles import loop_of
from compmem.schema import MemoryBlock, Step, Usage
from compmem_research.bench import rankings
from compmem_research.bench.clock import Times, none, now
from compmem_research.bench.memory import Memory, Models
from compmem_research.bench.peak import Peak
from compmem_research.bench.systems import RECALLED, Entrant
from compmem_research.metrics import exact_match, f1, recall_at, sub_em, sub_em_two_way
from compmem_research.tasks.sample import Sample

Row = dict[str, Any]
"""What was measured of one question by one system."""

KEPT = 60
"""Characters of an answer that are kept in a row."""

TIMES = ("index_s", "first_s", "warm_s")
"""Making the memory, the first answer, a warm one."""

RANKS: dict[str, rankings.Rank] = {
    "dense": rankings.dense, "bm25": rankings.bm25, "fused": rankings.fused, "micro": rankings.by_sentence,
}  # fmt: skip


@dataclass(slots=True)
class Watched:
    """What the loop works on, with an eye on what is proposed; or a fixed ranking in place of candidates and gate."""

    inner: QuestionBench
    order: list[int] | None = None
    proposed: dict[int, None] = field(default_factory=dict)

    def propose(self, memory: str) -> list[int]:
        """Numbers of the blocks that may bear on the question."""
        found = self.inner.propose(memory) if self.order is None else self.order
        self.proposed.update(dict.fromkeys(found))
        return found

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The gate score of each block, or one that falls with its rank."""
        if self.order is None:
            return self.inner.score(memory, blocks)
        places = {n: place for place, n in enumerate(self.order)}
        return [1.0 - places[n] / len(places) for n in blocks]

    def fetch(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        """The blocks themselves."""
        return self.inner.fetch(blocks)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return self.inner.count_tokens(text)

    @property
    def looks_again(self) -> bool:
        """Whether first stage and gate are to be asked again with each new working memory."""
        return self.order is not None or self.inner.looks_again

    @property
    def answerable(self) -> bool:
        """Whether any of the first candidates may answer at all."""
        return self.order is not None or self.inner.answerable


@dataclass(frozen=True, kw_only=True, slots=True)
class Told:
    """An answer with what the loop did for it."""

    text: str
    found: Gathered
    cost: Usage
    proposed: list[int]
    ranked: list[int]
    """Blocks as the system orders them, the best first."""


def ask(entrant: Entrant, index: MemoryIndex, question: str, models: Models) -> Told:
    """The system's answer.

    Raises:
        ReaderError: The model failed.
        ValueError: What is to be read is larger than the model's context.
    """
    system = entrant.system
    config, chat = _config(entrant), models.chat if entrant.reader == "chat" else None
    with index.bench(question, None, config) as bench:
        watched = Watched(bench)
        if system.ranking != "loop":
            watched.order = RANKS[system.ranking](bench, RECALLED)
        reader = index.reader(config, bench, chat=chat)
        found = run(gathered(question, loop_of(watched, config, bench.threshold, reader), reader))
        text, cost = _written(reader.write(question, found.memory))
        if watched.order is not None:
            ranked = watched.order
        else:
            ranked = [r.block for r in bench.best(found.scores, RECALLED)] if config.gate != "off" else []
        return Told(text=text, found=found, cost=cost, proposed=list(watched.proposed), ranked=ranked)


def measure(entrant: Entrant, memory: Memory, sample: Sample, models: Models, *, before: str) -> Row:
    """Everything that is measured of one question by one system.

    Args:
        entrant: The system.
        memory: What it reads from.
        sample: The question.
        models: What it runs on.
        before: Another question, asked first where the time of a warm answer is taken.
    """
    device = models.backbone.device if models.backbone is not None and entrant.reader == "latent" else None
    with Peak(device) as peak:
        began = now()
        told = ask(entrant, memory.index, sample.question, models)
        cold = now() - began
    warm = cold
    if entrant.reader == "extractive" and not entrant.system.scans:  # a model is asked once: its calls are the time
        again = memory.reopened(models)
        ask(entrant, again, before, models)
        began = now()
        ask(entrant, again, sample.question, models)
        warm = now() - began
    steps = told.found.steps
    row: Row = {
        "id": sample.id,
        "system": entrant.name,
        "blocks": told.found.usage.blocks_read,
        "steps": len(steps),
        **_tokens(entrant, told, models),
        **_seconds(entrant, memory, cold, warm),
        "peak": peak.bytes,
        "disk": memory.disk_bytes if entrant.system.keeps else 0,
    }
    if memory.share < 1 and entrant.system.scans:
        return _whole(row, memory.share)
    return {**row, **_quality(sample, told), **_recall(entrant, memory, told), "exited": told.found.exited}


def _quality(sample: Sample, told: Told) -> Row:
    answers = sample.answers
    row: Row = {"score": round(sample.score(told.text, found=bool(told.found.memory.text.strip())), 4)}
    if sample.metric != "unanswerable":
        row |= {
            "em": exact_match(told.text, answers), "f1": round(f1(told.text, answers), 4),
            "sub_em": sub_em(told.text, answers), "sub_em_two_way": sub_em_two_way(told.text, answers),
        }  # fmt: skip
    return {**row, "answer": " ".join(told.text.split())[:KEPT]}


def _recall(entrant: Entrant, memory: Memory, told: Told) -> Row:
    row: Row = {}
    read = [r.block for s in told.found.steps for r in s.recalls]
    if memory.gold_in_all:
        kept = len(memory.gold) / memory.gold_in_all
        if memory.gold:
            if told.ranked:
                row[f"recall@{RECALLED}"] = round(kept * recall_at(told.ranked, memory.gold, RECALLED), 4)
            row["proposed"] = round(kept * recall_at(told.proposed, memory.gold, len(told.proposed)), 4)
            row["read"] = round(kept * recall_at(read, memory.gold, len(read)), 4)
        else:
            row |= {f"recall@{RECALLED}": 0.0, "proposed": 0.0, "read": 0.0}
    if entrant.system.config.exit_gate and memory.gold and len(memory.gold) == memory.gold_in_all:
        row["exit"] = _exit(told.found.steps, memory.gold)
    return row


def _exit(steps: Sequence[Step], gold: frozenset[int]) -> str:
    """When the loop ended, seen from the step in which the last evidence was read (2602.10560)."""
    missing = set(gold)
    for step in steps:
        missing -= {r.block for r in step.recalls}
        if not missing:
            return "exact" if step.number == len(steps) else "late"
    return "early"


def _tokens(entrant: Entrant, told: Told, models: Models) -> Row:
    usage = told.found.usage + told.cost
    count = models.plain.count_tokens
    if entrant.reader == "extractive":
        texts = [r.chunk.text for s in told.found.steps for r in s.recalls]
        read, said = sum(count(texts)), sum(count([told.text]))
    else:
        read, said = usage.prompt_tokens, usage.completion_tokens
    return {"in": read, "out": said, "memory": count([s.working_memory for s in told.found.steps])}


def _seconds(entrant: Entrant, memory: Memory, cold: Times, warm: Times) -> Row:
    """Seconds of making the memory, of the first answer, and of one once the memory is there: clock and processor.

    A system without a memory between questions reads the text anew for each; with a language model that is a part of
    its calls, and for the extractive reader it is the encoder's work.
    """
    made, scale = memory.times + memory.cutting, 1.0
    if memory.share < 1 and entrant.system.scans:
        scale = 1 / memory.share
        made = memory.times * scale + memory.cutting
    cold, warm = cold * scale, warm * scale
    if entrant.system.keeps:
        index, first, again = made, made + cold, warm
    else:
        reading = made if entrant.reader == "extractive" else none()
        index, first, again = none(), reading + cold, reading + warm
    named = zip(TIMES, (index, first, again), strict=True)
    return {name: [round(float(t), 4) for t in times] for name, times in named}


def _whole(row: Row, share: float) -> Row:
    """The figures of a scan whose steps were timed on a sample, for all of its steps."""
    timed = row["steps"]
    for name in ("blocks", "in", "disk"):
        row[name] = round(row[name] / share)
    return {**row, "steps": round(timed / share), "timed_steps": timed, "memory": [], "peak": None}


def _config(entrant: Entrant) -> LoopConfig:
    role = "writer" if entrant.system.direct and entrant.reader != "extractive" else "reader"
    return entrant.system.config.but(**{role: entrant.reader})


def _written(pieces: Iterator[Any]) -> tuple[str, Usage]:
    said, cost = [], Usage()
    for piece in pieces:
        if isinstance(piece, Usage):
            cost += piece
        else:
            said.append(piece)
    return "".join(said).strip(), cost
