"""Measures one system on one question."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from compmem.config import LoopConfig
from compmem.index import MemoryIndex
from compmem.loop.context import QuestionContext
from compmem.loop.drivers import run, run_loop
from compmem.loop.loop import LoopResult
from compmem.loop.roles import make_loop
from compmem.schema import MemoryBlock, Step, Usage, WorkingMemory
from compmem_research.bench import rankings
from compmem_research.bench.clock import Times, none, now
from compmem_research.bench.memory import Memory, Models
from compmem_research.bench.peak import Peak
from compmem_research.bench.systems import RECALLED, SystemRun
from compmem_research.metrics import exact_match, f1, recall_at, sub_em, sub_em_two_way
from compmem_research.tasks.sample import Sample

Row = dict[str, Any]
"""The measurements of one question and system."""

MAX_ANSWER_CHARS = 60
"""Most characters of an answer stored in a row."""

TIMES = ("index_s", "first_s", "warm_s")
"""Making the memory, the first answer, a warm answer."""

RANKS: dict[str, rankings.Rank] = {
    "dense": rankings.dense, "bm25": rankings.bm25, "fused": rankings.fused, "micro": rankings.by_sentence,
}  # fmt: skip


@dataclass(slots=True)
class RecordingContext:
    """The context of the loop, which records the proposed blocks; or a fixed ranking instead of candidates and gate."""

    inner: QuestionContext
    order: list[int] | None = None
    proposed: dict[int, None] = field(default_factory=dict)

    def propose(self, memory: str) -> list[int]:
        """Numbers of the blocks that may be relevant to the question."""
        found = self.inner.propose(memory) if self.order is None else self.order
        self.proposed.update(dict.fromkeys(found))
        return found

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The gate score of each block, or one that decreases with its rank."""
        if self.order is None:
            return self.inner.score(memory, blocks)
        places = {n: place for place, n in enumerate(self.order)}
        return [1.0 - places[n] / len(places) for n in blocks]

    def subjects(self, blocks: Sequence[int]) -> list[str]:
        """The title of each block, or the id of its document if it has none."""
        return self.inner.subjects(blocks)

    def lacks_words(self, memory: WorkingMemory) -> bool:
        """Whether the notes lack words of the question; not asked of a fixed ranking."""
        return self.order is None and self.inner.lacks_words(memory)

    def linked(self, memory: WorkingMemory) -> list[int]:
        """Numbers of the blocks with a rare identifier of the best notes; none for a fixed ranking."""
        return self.inner.linked(memory) if self.order is None else []

    def fetch(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        """The blocks with these numbers."""
        return self.inner.fetch(blocks)

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return self.inner.count_tokens(text)

    @property
    def needs_requery(self) -> bool:
        """Whether first stage and gate must run again with each new working memory."""
        return self.order is not None or self.inner.needs_requery

    @property
    def answerable(self) -> bool:
        """Whether any of the first candidates may answer the question."""
        return self.order is not None or self.inner.answerable


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchAnswer:
    """An answer with the steps of the loop."""

    text: str
    found: LoopResult
    cost: Usage
    proposed: list[int]
    ranked: list[int]
    """Blocks in the order of the system, best first."""


def ask(system_run: SystemRun, index: MemoryIndex, question: str, models: Models) -> BenchAnswer:
    """The system's answer.

    Raises:
        ReaderError: The model failed.
        ValueError: The text to read is longer than the model's context.
    """
    system = system_run.system
    config, chat = _config(system_run), models.chat if system_run.reader == "chat" else None
    with index.question_context(question, None, config) as context:
        watched = RecordingContext(context)
        if system.ranking != "loop":
            watched.order = RANKS[system.ranking](context, RECALLED)
        reader = index.reader(config, context, chat=chat)
        found = run(run_loop(question, make_loop(watched, config, context.threshold, reader), reader))
        text, cost = _written(reader.write(question, found.memory))
        if watched.order is not None:
            ranked = watched.order
        else:
            ranked = [r.block for r in context.best(found.scores, RECALLED)] if config.gate != "off" else []
        return BenchAnswer(text=text, found=found, cost=cost, proposed=list(watched.proposed), ranked=ranked)


def measure(system_run: SystemRun, memory: Memory, sample: Sample, models: Models, *, before: str) -> Row:
    """All measurements of one question and system.

    Args:
        system_run: The system.
        memory: The memory that the system reads.
        sample: The question.
        models: The models.
        before: Another question, asked first to measure a warm answer.
    """
    device = models.backbone.device if models.backbone is not None and system_run.reader == "latent" else None
    with Peak(device) as peak:
        began = now()
        answer = ask(system_run, memory.index, sample.question, models)
        cold = now() - began
    warm = cold
    # Other systems are called once: their calls are the time.
    if system_run.reader == "extractive" and not system_run.system.scans:
        again = memory.reopened(models)
        ask(system_run, again, before, models)
        began = now()
        ask(system_run, again, sample.question, models)
        warm = now() - began
    steps = answer.found.steps
    row: Row = {
        "id": sample.id,
        "system": system_run.name,
        "blocks": answer.found.usage.blocks_read,
        "steps": len(steps),
        **_tokens(system_run, answer, models),
        **_seconds(system_run, memory, cold, warm),
        "peak": peak.bytes,
        "disk": memory.disk_bytes if system_run.system.keeps else 0,
    }
    if memory.share < 1 and system_run.system.scans:
        return _extrapolate(row, memory.share, written_in_steps=system_run.reader != "extractive")
    return {
        **row,
        **_quality(sample, answer),
        **_recall(system_run, memory, answer),
        "exited": answer.found.stop_reason,
    }


def _quality(sample: Sample, answer: BenchAnswer) -> Row:
    answers = sample.answers
    row: Row = {"score": round(sample.score(answer.text, found=bool(answer.found.memory.text.strip())), 4)}
    if sample.metric != "unanswerable":
        row |= {
            "em": exact_match(answer.text, answers), "f1": round(f1(answer.text, answers), 4),
            "sub_em": sub_em(answer.text, answers), "sub_em_two_way": sub_em_two_way(answer.text, answers),
        }  # fmt: skip
    return {**row, "answer": " ".join(answer.text.split())[:MAX_ANSWER_CHARS]}


def _recall(system_run: SystemRun, memory: Memory, answer: BenchAnswer) -> Row:
    row: Row = {}
    read = [r.block for s in answer.found.steps for r in s.recalls]
    if memory.gold_in_all:
        kept = len(memory.gold) / memory.gold_in_all
        if memory.gold:
            if answer.ranked:
                row[f"recall@{RECALLED}"] = round(kept * recall_at(answer.ranked, memory.gold, RECALLED), 4)
            row["proposed"] = round(kept * recall_at(answer.proposed, memory.gold, len(answer.proposed)), 4)
            row["read"] = round(kept * recall_at(read, memory.gold, len(read)), 4)
        else:
            row |= {f"recall@{RECALLED}": 0.0, "proposed": 0.0, "read": 0.0}
    if system_run.system.config.exit_gate and memory.gold and len(memory.gold) == memory.gold_in_all:
        row["exit"] = _exit(answer.found.steps, memory.gold)
    return row


def _exit(steps: Sequence[Step], gold: frozenset[int]) -> str:
    """When the loop ended, relative to the step in which the last evidence was read (2602.10560)."""
    missing = set(gold)
    for step in steps:
        missing -= {r.block for r in step.recalls}
        if not missing:
            return "exact" if step.number == len(steps) else "late"
    return "early"


def _tokens(system_run: SystemRun, answer: BenchAnswer, models: Models) -> Row:
    usage = answer.found.usage + answer.cost
    count = models.plain.count_tokens
    if system_run.reader == "extractive":
        texts = [r.chunk.text for s in answer.found.steps for r in s.recalls]
        read, said = sum(count(texts)), sum(count([answer.text]))
    else:
        read, said = usage.prompt_tokens, usage.completion_tokens
    return {"in": read, "out": said, "memory": count([s.working_memory for s in answer.found.steps])}


def _seconds(system_run: SystemRun, memory: Memory, cold: Times, warm: Times) -> Row:
    """Seconds of making the memory, of the first answer, and of a warm answer: wall-clock and processor time.

    A system without a memory between questions reads the text again for each. With a language model this is a part of
    its calls; for the extractive reader it is the encoder's work.
    """
    made, scale = memory.times + memory.cutting, 1.0
    if memory.share < 1 and system_run.system.scans:
        scale = 1 / memory.share
        made = memory.times * scale + memory.cutting
    cold, warm = cold * scale, warm * scale
    if system_run.system.keeps:
        index, first, again = made, made + cold, warm
    else:
        reading = made if system_run.reader == "extractive" else none()
        index, first, again = none(), reading + cold, reading + warm
    named = zip(TIMES, (index, first, again), strict=True)
    return {name: [round(float(t), 4) for t in times] for name, times in named}


def _extrapolate(row: Row, share: float, *, written_in_steps: bool) -> Row:
    """The measurements of a scan whose steps were timed on a sample, scaled to all of its steps.

    Args:
        row: The measurements.
        share: The share of the steps that were timed.
        written_in_steps: A model writes notes in each step. False: only the answer is written.
    """
    timed = row["steps"]
    for name in ("blocks", "in", *(("out",) if written_in_steps else ()), "disk"):
        row[name] = round(row[name] / share)
    return {**row, "steps": round(timed / share), "timed_steps": timed, "memory": [], "peak": None}


def _config(system_run: SystemRun) -> LoopConfig:
    role = "writer" if system_run.system.direct and system_run.reader != "extractive" else "reader"
    return system_run.system.config.replace(**{role: system_run.reader})


def _written(pieces: Iterator[Any]) -> tuple[str, Usage]:
    said, cost = [], Usage()
    for piece in pieces:
        if isinstance(piece, Usage):
            cost += piece
        else:
            said.append(piece)
    return "".join(said).strip(), cost
