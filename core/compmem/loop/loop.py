"""The loop: candidates, gate, recall, read, update the working memory, repeat.

The loop is a generator: it yields requests to read and is sent the results. One driver (`compmem.loop.drivers`) runs it
for sync, async and streamed answers. MemAgent (2507.02259), GRU-Mem (2602.10560), LycheeMemory (2602.08382)
and plain RAG are settings.

The default differs from the papers in three ways. After each update of the working memory, candidates and gate scores
are computed again. A rejected block stays a candidate, because its relevance may only show later (35 % of the published
errors of LycheeMemory are early clues that were rejected). A reader that can score blocks does so before it reads them.
"""

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Protocol

from compmem.config import LoopConfig, RecallConfig
from compmem.deadline import OverdueError, now
from compmem.schema import MemoryBlock, Reading, Recall, Step, StopReason, Usage, WorkingMemory
from compmem.text.truncation import ending

GATED_WINDOW = 64
"""Blocks gated at once in a pass in document order."""

SCORED_AT_ONCE = 16
"""Number of blocks with the highest gate scores that the reader scores at once."""

QUOTED_ON_TIMEOUT = 3
"""Number of blocks with the highest gate scores to quote from if no read finished in time."""

LIKELY_SCORE = 0.5
"""A block with this score in an earlier pass is read at the end, though later passes rejected it; see `trusts_gate`."""

MAX_REJECTED_BLOCKS = 2
"""Maximum number of rejected blocks, with the title of one that was read, which are read for words that notes lack."""

MIN_REJECTED_SCORE = 0.05
"""Minimum score of these in the first pass."""

MAX_LINKED_BLOCKS = 4
"""Maximum number of blocks that are read for an identifier in the notes alone."""

FEW_CANDIDATES = 20
"""Below this number of candidates the gate is over-confident, because it compares them."""


class LoopContext(Protocol):
    """The index for one question, as the loop sees it."""

    def propose(self, memory: str) -> list[int]:
        """Numbers of the blocks that may be relevant to the question, given the working memory."""
        ...

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The gate score of each block, given the working memory."""
        ...

    def fetch(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        """The blocks with these numbers."""
        ...

    def subjects(self, blocks: Sequence[int]) -> list[str]:
        """The title of each block, or the id of its document if it has none."""
        ...

    def lacks_words(self, memory: WorkingMemory) -> bool:
        """Whether there are notes, and they lack words of the question."""
        ...

    def linked(self, memory: WorkingMemory) -> list[int]:
        """Numbers of the blocks with a rare identifier of the best notes."""
        ...

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, for the budget of the working memory."""
        ...

    @property
    def needs_requery(self) -> bool:
        """Whether candidates and scores must be computed again with each new memory; known after the first pass."""
        ...

    @property
    def answerable(self) -> bool:
        """Whether any of the first candidates may answer the question; known once they are scored."""
        ...


@dataclass(frozen=True, slots=True)
class ReadRequest:
    """A request to the driver to read these blocks."""

    memory: WorkingMemory
    blocks: tuple[MemoryBlock, ...]
    relevant: bool = False
    """The blocks are known to help, since the reader has scored them."""


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """A request to the driver for the log-odds that each of these blocks helps; None if the reader has no scores."""

    memory: WorkingMemory
    blocks: tuple[MemoryBlock, ...]


@dataclass(frozen=True, slots=True)
class LoopResult:
    """The result of the loop: everything except the answer's text."""

    memory: WorkingMemory
    steps: tuple[Step, ...]
    scores: dict[int, float]
    """The last score of every block. A later pass uses the first score of each block as a feature. A block that was
    read without an update gets its first score back."""
    update_recalls: tuple[Recall, ...]
    """Recalled blocks whose step updated the memory, in reading order."""
    usage: Usage
    stop_reason: StopReason
    writer_recalls: tuple[Recall, ...] = ()
    """Recalled blocks that are in the memory, for the writer."""
    answerable: bool = True
    """False if the gate finds that nothing answers, and no language model has judged the blocks."""


Outcome = Reading | list[float] | OverdueError | None
"""The driver's reply: a reading for `ReadRequest`, log-odds or None for `ScoreRequest`, an error after the deadline."""

Loop = Generator[ReadRequest | ScoreRequest | Step, Outcome, LoopResult]


@dataclass(slots=True)
class _RecallLoop:
    """What is known of one question so far, and the rules for the next step."""

    context: LoopContext
    config: LoopConfig
    threshold: float
    trusts_gate: bool
    clock: Callable[[], float]
    memory: WorkingMemory = field(default_factory=WorkingMemory)
    steps: list[Step] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    """The first score of each block."""
    first_pass: dict[int, float] = field(default_factory=dict)
    """The scores of the first candidates without notes."""
    rejected_read: int = 0
    """Blocks that were read although they were rejected."""
    linked_read: int = 0
    """Blocks that were read for an identifier in the notes alone."""
    read: dict[int, Recall] = field(default_factory=dict)
    update_recalls: list[Recall] = field(default_factory=list)
    rejected: set[int] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)
    proposed: int = 0
    reader_scores: dict[int, float] = field(default_factory=dict)
    """The reader's log-odds that a block helps."""
    scored_with: str | None = None
    """The working memory for which these were computed."""
    late: bool = False
    """The reader did not finish by the deadline."""

    def seconds_needed(self) -> float:
        """Estimated seconds for another step and the answer, from the mean time of a step so far."""
        return 2 * sum(step.seconds for step in self.steps) / max(1, len(self.steps))

    def blocks_for_writer(self, max_blocks: int) -> tuple[tuple[Recall, ...], WorkingMemory]:
        """The blocks for the writer, and the memory with them: the best ones that updated it, then the best others.

        Blocks that updated the memory stand in reading order; without a gate that ranks them, all stand in document
        order.
        """

        def ranked(blocks: Iterable[int]) -> list[int]:
            return sorted(blocks, key=lambda n: (-self.scores.get(n, 1.0), n))

        updating = dict.fromkeys(recall.block for recall in self.update_recalls)
        best = [*ranked(updating), *ranked(self.scores.keys() - updating.keys())][:max_blocks]
        chosen = set(best)
        numbers = [n for n in [*updating, *best[len(updating) :]] if n in chosen]
        if self.config.gate == "off":
            numbers.sort()
        blocks = tuple(self.context.fetch(numbers)) if numbers else ()
        return self._recalls(numbers, blocks), replace(self.memory, blocks=blocks)

    def _recalls(self, numbers: Sequence[int], blocks: Sequence[MemoryBlock]) -> tuple[Recall, ...]:
        scores = [self.scores.get(n, 1.0) for n in numbers]
        return tuple(Recall(chunk=b.chunk, score=s, block=n) for n, s, b in zip(numbers, scores, blocks, strict=True))

    def best_by_reader(self) -> Generator[ScoreRequest, Outcome, list[int] | None]:
        """The block most likely to help by the reader's score, among the gate's best; empty if none is likely.

        None if the reader cannot score blocks, or no gate ranks them.
        """
        memory = self.memory
        if self.scored_with != memory.text:
            proposed = self._propose()
            gate = self._score(proposed)
            self.rejected.update(n for n in proposed if gate[n] < self.threshold)
            if len(proposed) > SCORED_AT_ONCE and len(set(gate.values())) == 1:
                return None
            likely = sorted(proposed, key=lambda n: (-gate[n], n))[:SCORED_AT_ONCE]
            odds = (yield ScoreRequest(memory, tuple(self.context.fetch(likely)))) if likely else []
            assert not isinstance(odds, Reading), "a driver answers ScoreRequest with log-odds"
            if isinstance(odds, OverdueError):
                self.late = True
                return []
            if odds is None:
                return None
            self.reader_scores = dict(zip(likely, odds, strict=True))
            self.scored_with = memory.text
        left = [n for n in self.reader_scores if n not in self.read]
        best = max(left, key=lambda n: (self.reader_scores[n], -n), default=None)
        assert self.config.reader_threshold is not None, "blocks are scored only with a threshold"
        return [] if best is None or _probability(self.reader_scores[best]) < self.config.reader_threshold else [best]

    def step(self, chosen: list[int], started: float, *, relevant: bool) -> Generator[ReadRequest, Outcome, Step]:
        """Reads these blocks; `relevant` if the reader has scored them."""
        blocks = self.context.fetch(chosen)
        recalls = self._recalls(chosen, blocks)
        reading = yield ReadRequest(self.memory, tuple(blocks), relevant=relevant)
        self.late = isinstance(reading, OverdueError)
        if isinstance(reading, OverdueError):
            reading = Reading(memory=self.memory, update=False, exit=False)
        assert isinstance(reading, Reading), "a driver answers every ReadRequest"
        self.usage += reading.usage + Usage(blocks_read=0 if self.late else len(chosen))
        self.read.update(zip(chosen, recalls, strict=True))
        gate_decides = self.trusts_gate and (not self.memory.text or self.proposed >= FEW_CANDIDATES)
        likely = gate_decides and any(recall.score >= LIKELY_SCORE for recall in recalls)
        updated = not self.late and (reading.update or likely)
        if updated or not (self.late or self.config.update_gate):
            self.memory = _within_budget(reading.memory, self.config.memory_tokens, self.context.count_tokens)
            self.update_recalls.extend(recalls)
        else:  # a higher score of a later pass was wrong
            self.scores.update((n, self.first.get(n, 0.0)) for n in chosen)
        step = Step(
            number=len(self.steps) + 1,
            recalls=recalls,
            working_memory=self.memory.text,
            updated=updated,
            exit=reading.exit,
            lost=self.late,
            backtracked=any(n in self.rejected for n in chosen),
            candidates=self.proposed,
            seconds=self.clock() - started,
        )
        self.steps.append(step)
        return step

    def _propose(self) -> list[int]:
        proposed = [n for n in self.context.propose(self.memory.text) if n not in self.read]
        self.proposed = len(proposed)
        return proposed

    def _score(self, blocks: Sequence[int]) -> dict[int, float]:
        memory = "" if self.config.gate == "question" else self.memory.text
        scores = dict(zip(blocks, self.context.score(memory, blocks), strict=True))
        self.usage += Usage(blocks_scored=len(blocks))
        self.scores.update(scores)
        for number, score in scores.items():
            self.first.setdefault(number, score)
        return scores

    def _with_subjects_read(self, scores: dict[int, float]) -> dict[int, float]:
        """The scores of a later pass; blocks with the title of one that was read have at most that of the first pass.

        The notes have that title and its subject, so everything under it seems to go on from there.
        """
        lower = {n: min(scores[n], self.first_pass.get(n, 0.0)) for n in self._of_subjects_read(list(scores))}
        self.scores.update(lower)
        return scores | lower

    def _of_subjects_read(self, blocks: Sequence[int]) -> list[int]:
        """Those of these blocks that have the title of one that was read."""
        read = set(self.context.subjects(list(self.read)))
        return [n for n, subject in zip(blocks, self.context.subjects(blocks), strict=True) if subject in read]

    def best_first(self, *, fallback: int, quotes: bool, writes: bool) -> Iterator[list[int]]:
        """Groups of blocks, best first; queried again after each step if settings and first pass require it."""
        context, config = self.context, self.config
        seen_memory: str | None = None
        scores, likely = dict[int, float](), dict[int, float]()
        while True:
            if seen_memory is None or (config.requery and self.memory.text != seen_memory and context.needs_requery):
                seen_memory = self.memory.text
                proposed = self._propose()
                if not config.backtrack:
                    proposed = [n for n in proposed if n not in self.rejected]
                    self.proposed = len(proposed)
                scores = self._score(proposed)
                if not self.steps:
                    self.first_pass = scores
                elif self.trusts_gate:
                    scores = self._with_subjects_read(scores)
                likely |= {
                    n: s for n, s in scores.items() if config.backtrack and s >= max(self.threshold, LIKELY_SCORE)
                }
                if not self.steps:
                    unanswerable = quotes and not context.answerable
                    if unanswerable or not (writes or context.needs_requery):
                        return
            left = {n: s for n, s in scores.items() if n not in self.read}
            admitted = sorted((n for n, s in left.items() if s >= self.threshold), key=lambda n: (-left[n], n))
            self.rejected.update(n for n, s in left.items() if s < self.threshold)
            if admitted:
                yield admitted[: config.blocks_per_step]
            elif fallback and left and not self.steps:
                yield sorted(left, key=lambda n: (-left[n], n))[:fallback]
            elif unread := [n for n in likely if n not in self.read]:
                yield [max(unread, key=lambda n: (likely[n], -n))]
            elif more := self._for_missing_words(rejected=quotes and writes):
                yield more
            else:
                return

    def _for_missing_words(self, *, rejected: bool) -> list[int]:
        """The unread block that may best have words of the question which the notes lack; none if they lack none.

        First, if `rejected`, those with the title of one that was read, by their score in the first pass.
        """
        if not self.context.lacks_words(self.memory):
            return []
        if rejected and self.rejected_read < MAX_REJECTED_BLOCKS and (found := self._best_rejected()):
            self.rejected_read += 1
            return found[:1]
        found = [n for n in self.context.linked(self.memory) if n not in self.read][:1]
        self.linked_read += len(found)
        if self.linked_read > MAX_LINKED_BLOCKS:
            return []
        self._score([n for n in found if n not in self.scores])  # no candidate, so it has no score
        return found

    def _best_rejected(self) -> list[int]:
        left = [n for n, score in self.first_pass.items() if n not in self.read and score >= MIN_REJECTED_SCORE]
        return sorted(self._of_subjects_read(left), key=lambda n: (-self.first_pass[n], n))

    def in_document_order(self) -> Iterator[list[int]]:
        """Groups of blocks in document order, each gated with the current memory."""
        while True:
            before = self.memory.text
            yield from self._one_pass(sorted(self._propose()))
            if not (self.config.backtrack and self.memory.text != before):
                return

    def _one_pass(self, proposed: list[int]) -> Iterator[list[int]]:
        group: list[int] = []
        at = 0
        while at < len(proposed):
            window = proposed[at : at + GATED_WINDOW]
            scores = self._score(window)
            for n in window:
                at += 1
                if scores[n] < self.threshold:
                    self.rejected.add(n)
                    continue
                group.append(n)
                if len(group) == self.config.blocks_per_step:
                    before = self.memory.text
                    yield group
                    group = []
                    if self.memory.text != before and self.config.gate == "learned":
                        break  # the blocks after this one are gated again, with the new memory
        if group:
            yield group


def recall_loop(
    context: LoopContext,
    config: RecallConfig,
    threshold: float,
    *,
    can_score: bool = False,
    writer_blocks: int = 0,
    fallback: int = 0,
    trusts_gate: bool = False,
    writes: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
    clock: Callable[[], float] = now,
) -> Loop:
    """The loop without the answer: yields requests to read and finished steps, and returns its result.

    Args:
        context: The index for this question.
        config: Settings of the loop.
        threshold: Blocks with a lower gate score are rejected.
        can_score: The reader can score blocks before it reads them.
        writer_blocks: Maximum number of recalled blocks that are in the memory at the end.
        fallback: Number of best blocks that are read together if all are rejected in the first pass.
        trusts_gate: Evidence of a block with gate score >= `LIKELY_SCORE` is kept even if the reader rejects it, while
            nothing is noted, or later among >= `FEW_CANDIDATES` candidates: the reader compares with the question, and
            a later fact is near to the notes. Unless blocks are shown to a model, nothing is read if the gate finds
            that nothing answers.
        writes: An answer is written at the end. If not, nothing is read if the first pass suffices for a ranking.
        cancelled: Called before each step; if it returns true, the loop ends.
        clock: Returns the time in seconds.
    """
    config, began = LoopConfig.complete(config), clock()
    loop = _RecallLoop(context, config, threshold, trusts_gate, clock)
    if config.order == "document":
        picks = loop.in_document_order()
    else:
        picks = loop.best_first(fallback=fallback, quotes=trusts_gate and not writer_blocks, writes=writes)
    by_reader = can_score and config.can_score
    stop_reason: StopReason = "exhausted"
    while True:
        if cancelled():
            stop_reason = "cancelled"
            break
        if config.max_steps is not None and len(loop.steps) >= config.max_steps:
            stop_reason = "steps"
            break
        if config.max_seconds is not None and clock() - began + loop.seconds_needed() >= config.max_seconds:
            stop_reason = "seconds"
            break
        started = clock()
        chosen = (yield from loop.best_by_reader()) if by_reader else None
        by_reader = chosen is not None
        if chosen is None:
            chosen = next(picks, None)
        if chosen:
            step = yield from loop.step(chosen, started, relevant=by_reader)
            yield step
        if loop.late:
            stop_reason = "seconds"
            break
        if not chosen:
            break
        if config.exit_gate and step.exit:
            stop_reason = "exit_gate"
            break
    if loop.late and not loop.memory.text:
        writer_blocks = max(writer_blocks, QUOTED_ON_TIMEOUT)
    recalls, memory = loop.blocks_for_writer(writer_blocks)
    usage = replace(loop.usage, steps=len(loop.steps), seconds=clock() - began)
    answerable = context.answerable if trusts_gate and config.order == "best" else True  # judged by a list of the best
    steps, updating = tuple(loop.steps), tuple(loop.update_recalls)
    return LoopResult(memory, steps, loop.scores, updating, usage, stop_reason, recalls, answerable)


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(min(-log_odds, 700.0)))


def _within_budget(memory: WorkingMemory, limit: int, count: Callable[[str], int]) -> WorkingMemory:
    """The end of the text, and the best of the evidence, of at most so many tokens each."""
    text = ending(memory.text, limit, count)
    if text == memory.text:
        return memory
    ranked = sorted(memory.evidence, key=lambda e: -e.score)
    sizes = accumulate(count(e.text) for e in ranked)
    best = {id(e) for e, size in zip(ranked, sizes, strict=True) if size <= limit or e is ranked[0]}
    return replace(memory, text=text, evidence=tuple(e for e in memory.evidence if id(e) in best))
