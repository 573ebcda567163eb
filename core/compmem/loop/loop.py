"""The loop: candidates, gate, recall, read, update the working memory, repeat.

The loop is a generator: it yields requests to read and is sent the results. One driver (`compmem.loop.drivers`) runs it
for sync, async, streamed and batched answers. MemAgent (2507.02259), GRU-Mem (2602.10560), LycheeMemory (2602.08382)
and plain RAG are settings.

The default differs from the papers in three ways. After each update of the working memory, candidates and gate scores
are computed again. A rejected block stays a candidate, because its relevance may only show later (35 % of the published
errors of LycheeMemory are early clues that were rejected). A reader that can score blocks does so before it reads them.
"""

import math
import re
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

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

FEW_CANDIDATES = 20
"""Below this number of candidates the gate is over-confident, because it compares them."""

_WORD: Final = re.compile(r"\w+")


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


@dataclass(slots=True)
class _State:
    memory: WorkingMemory = field(default_factory=WorkingMemory)
    steps: list[Step] = field(default_factory=list)
    scores: dict[int, float] = field(default_factory=dict)
    first: dict[int, float] = field(default_factory=dict)
    """The first score of each block."""
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


Outcome = Reading | list[float] | OverdueError | None
"""The driver's reply: a reading for `ReadRequest`, log-odds or None for `ScoreRequest`, an error after the deadline."""

Loop = Generator[ReadRequest | ScoreRequest | Step, Outcome, LoopResult]


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
        trusts_gate: After the first note, evidence of a block with gate score >= `LIKELY_SCORE` among >=
            `FEW_CANDIDATES` candidates is kept even if the reader rejects it: the reader compares with the question,
            and a later fact is near to the notes. Unless blocks are shown to a model, nothing is read if the gate finds
            that nothing answers.
        writes: An answer is written at the end. If not, nothing is read if the first pass suffices for a ranking.
        cancelled: Called before each step; if it returns true, the loop ends.
        clock: Returns the time in seconds.
    """
    config, state, began = LoopConfig.complete(config), _State(), clock()
    quotes_only_if_answerable = trusts_gate and not writer_blocks
    if config.order == "document":
        picks = _in_document_order(context, config, threshold, state)
    else:
        picks = _best(
            context,
            config,
            threshold,
            state,
            fallback=fallback,
            quotes_only_if_answerable=quotes_only_if_answerable,
            writes=writes,
        )
    by_reader = can_score and config.can_score
    stop_reason: StopReason = "exhausted"
    while True:
        if cancelled():
            stop_reason = "cancelled"
            break
        if config.max_steps is not None and len(state.steps) >= config.max_steps:
            stop_reason = "steps"
            break
        if config.max_seconds is not None and clock() - began + _still_needed(state) >= config.max_seconds:
            stop_reason = "seconds"
            break
        started = clock()
        chosen = (yield from _best_by_reader(context, config, threshold, state)) if by_reader else None
        by_reader = chosen is not None
        if chosen is None:
            chosen = next(picks, None)
        if chosen:
            step = yield from _step(
                context, config, state, chosen, started, clock, relevant=by_reader, trusts_gate=trusts_gate
            )
            yield step
        if state.late:
            stop_reason = "seconds"
            break
        if not chosen:
            break
        if config.exit_gate and step.exit:
            stop_reason = "exit_gate"
            break
    if state.late and not state.memory.text:
        writer_blocks = max(writer_blocks, QUOTED_ON_TIMEOUT)
    recalls, memory = _blocks_for_writer(context, state, writer_blocks, ranked=config.gate != "off")
    usage = replace(state.usage, steps=len(state.steps), seconds=clock() - began)
    answerable = context.answerable if trusts_gate else True
    steps, updating = tuple(state.steps), tuple(state.update_recalls)
    return LoopResult(memory, steps, state.scores, updating, usage, stop_reason, recalls, answerable)


def _still_needed(state: _State) -> float:
    """Estimated seconds for another step and the answer, from the mean time of a step so far."""
    return 2 * sum(step.seconds for step in state.steps) / max(1, len(state.steps))


def _blocks_for_writer(
    context: LoopContext, state: _State, max_blocks: int, *, ranked: bool
) -> tuple[tuple[Recall, ...], WorkingMemory]:
    """The blocks for the writer, and the memory with them: the best ones that updated it, then the best others.

    Blocks that updated the memory stand in reading order; without a gate that ranks them, all stand in document order.
    """

    def best_first(blocks: Iterable[int]) -> list[int]:
        return sorted(blocks, key=lambda n: (-state.scores.get(n, 1.0), n))

    updating = dict.fromkeys(recall.block for recall in state.update_recalls)
    best = [*best_first(updating), *best_first(state.scores.keys() - updating.keys())][:max_blocks]
    numbers = [n for n in [*updating, *best[len(updating) :]] if n in best] if ranked else sorted(best)
    blocks = tuple(context.fetch(numbers)) if numbers else ()
    return _recalls(state, numbers, blocks), replace(state.memory, blocks=blocks)


def _recalls(state: _State, numbers: Sequence[int], blocks: Sequence[MemoryBlock]) -> tuple[Recall, ...]:
    scores = [state.scores.get(n, 1.0) for n in numbers]
    return tuple(Recall(chunk=b.chunk, score=s, block=n) for n, s, b in zip(numbers, scores, blocks, strict=True))


def _best_by_reader(
    context: LoopContext, config: LoopConfig, threshold: float, state: _State
) -> Generator[ScoreRequest, Outcome, list[int] | None]:  # fmt: skip
    """The block most likely to help by the reader's score, among the gate's best; empty if none is likely.

    None if the reader cannot score blocks, or no gate ranks them.
    """
    memory = state.memory
    if state.scored_with != memory.text:
        proposed = [n for n in context.propose(memory.text) if n not in state.read]
        state.proposed = len(proposed)
        gate = _score(context, state, proposed)
        state.rejected.update(n for n in proposed if gate[n] < threshold)
        if len(proposed) > SCORED_AT_ONCE and len(set(gate.values())) == 1:
            return None
        likely = sorted(proposed, key=lambda n: (-gate[n], n))[:SCORED_AT_ONCE]
        odds = (yield ScoreRequest(memory, tuple(context.fetch(likely)))) if likely else []
        assert not isinstance(odds, Reading), "a driver answers ScoreRequest with log-odds"
        if isinstance(odds, OverdueError):
            state.late = True
            return []
        if odds is None:
            return None
        state.reader_scores = dict(zip(likely, odds, strict=True))
        state.scored_with = memory.text
    left = [n for n in state.reader_scores if n not in state.read]
    best = max(left, key=lambda n: (state.reader_scores[n], -n), default=None)
    assert config.reader_threshold is not None, "blocks are scored only with a threshold"
    return [] if best is None or _probability(state.reader_scores[best]) < config.reader_threshold else [best]


def _probability(log_odds: float) -> float:
    return 1 / (1 + math.exp(min(-log_odds, 700.0)))


def _step(
    context: LoopContext,
    config: LoopConfig,
    state: _State,
    chosen: list[int],
    started: float,
    clock: Callable[[], float],
    *,
    relevant: bool,
    trusts_gate: bool,
) -> Generator[ReadRequest, Outcome, Step]:
    blocks = context.fetch(chosen)
    recalls = _recalls(state, chosen, blocks)
    reading = yield ReadRequest(state.memory, tuple(blocks), relevant=relevant)
    state.late = isinstance(reading, OverdueError)
    if isinstance(reading, OverdueError):
        reading = Reading(memory=state.memory, update=False, exit=False)
    assert isinstance(reading, Reading), "a driver answers every ReadRequest"
    state.usage += reading.usage + Usage(blocks_read=0 if state.late else len(chosen))
    state.read.update(zip(chosen, recalls, strict=True))
    trusts_gate = trusts_gate and bool(state.memory.text) and state.proposed >= FEW_CANDIDATES
    likely = trusts_gate and any(recall.score >= LIKELY_SCORE for recall in recalls)
    updated = not state.late and (reading.update or likely)
    if updated or not (state.late or config.update_gate):
        state.memory = _within_budget(reading.memory, config.memory_tokens, context.count_tokens)
        state.update_recalls.extend(recalls)
    else:  # a higher score of a later pass was wrong
        state.scores.update((n, state.first.get(n, 0.0)) for n in chosen)
    step = Step(
        number=len(state.steps) + 1,
        recalls=recalls,
        working_memory=state.memory.text,
        updated=updated,
        exit=reading.exit,
        lost=state.late,
        backtracked=any(n in state.rejected for n in chosen),
        candidates=state.proposed,
        seconds=clock() - started,
    )
    state.steps.append(step)
    return step


def _score(context: LoopContext, state: _State, blocks: Sequence[int]) -> dict[int, float]:
    scores = dict(zip(blocks, context.score(state.memory.text, blocks), strict=True))
    state.usage += Usage(blocks_scored=len(blocks))
    state.scores.update(scores)
    for number, score in scores.items():
        state.first.setdefault(number, score)
    return scores


def _best(
    context: LoopContext,
    config: LoopConfig,
    threshold: float,
    state: _State,
    *,
    fallback: int,
    quotes_only_if_answerable: bool,
    writes: bool,
) -> Iterator[list[int]]:
    """Groups of blocks, best first; queried again after each step if settings and first pass require it."""
    seen_memory: str | None = None
    scores, likely = dict[int, float](), dict[int, float]()
    while True:
        if seen_memory is None or (config.requery and state.memory.text != seen_memory and context.needs_requery):
            seen_memory = state.memory.text
            proposed = [n for n in context.propose(seen_memory) if n not in state.read]
            if not config.backtrack:
                proposed = [n for n in proposed if n not in state.rejected]
            state.proposed = len(proposed)
            scores = _score(context, state, proposed)
            likely |= {n: s for n, s in scores.items() if config.backtrack and s >= max(threshold, LIKELY_SCORE)}
            if not state.steps and (
                (quotes_only_if_answerable and not context.answerable) or not (writes or context.needs_requery)
            ):
                return
        left = {n: s for n, s in scores.items() if n not in state.read}
        admitted = sorted((n for n, s in left.items() if s >= threshold), key=lambda n: (-left[n], n))
        state.rejected.update(n for n, s in left.items() if s < threshold)
        if admitted:
            yield admitted[: config.blocks_per_step]
        elif fallback and left and not state.steps:
            yield sorted(left, key=lambda n: (-left[n], n))[:fallback]
        elif unread := [n for n in likely if n not in state.read]:
            yield [max(unread, key=lambda n: (likely[n], -n))]
        else:
            return


def _in_document_order(
    context: LoopContext, config: LoopConfig, threshold: float, state: _State
) -> Iterator[list[int]]:
    """Groups of blocks in document order, each gated with the current memory."""
    while True:
        before = state.memory.text
        proposed = sorted(n for n in context.propose(before) if n not in state.read)
        state.proposed = len(proposed)
        yield from _one_pass(context, config, threshold, state, proposed)
        if not (config.backtrack and state.memory.text != before):
            return


def _one_pass(
    context: LoopContext, config: LoopConfig, threshold: float, state: _State, proposed: list[int]
) -> Iterator[list[int]]:
    group: list[int] = []
    at = 0
    while at < len(proposed):
        window = proposed[at : at + GATED_WINDOW]
        scores = _score(context, state, window)
        for n in window:
            at += 1
            if scores[n] < threshold:
                state.rejected.add(n)
                continue
            group.append(n)
            if len(group) == config.blocks_per_step:
                before = state.memory.text
                yield group
                group = []
                if state.memory.text != before and config.gate == "learned":
                    break  # the blocks after this one are gated again, with the new memory
    if group:
        yield group


def _within_budget(memory: WorkingMemory, limit: int, count: Callable[[str], int]) -> WorkingMemory:
    text = ending(memory.text, limit, count)
    if text == memory.text:
        return memory
    said = _words(text)  # a line has a sentence's words, but other white space, and marks between label and sentence
    kept = [e for e in memory.evidence if _words(e.text) in said]
    # Of a last line that is too long by itself, the end is left.
    kept = kept or [e for e in memory.evidence[-1:] if said and _words(e.text).endswith(said)]
    return replace(memory, text=text, evidence=tuple(kept))


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text))
