"""The driver of the loop: it serves the loop's requests and writes the answer at the end.

The driver is async code with a runner. `Inline` works in the caller's thread and never suspends, so a sync caller runs
the same code without an event loop and without another thread. `Threaded` never blocks the event loop.

A read that has not returned by the deadline (`RecallConfig.max_seconds`) is abandoned, and its step is lost. Writing is
abandoned too: the answer is then the text that came in time, or else one made without a model, see `_without_model`.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import replace
from typing import Any, Final, TypeVar

from compmem.errors import ReaderError
from compmem.loop.deadline import OverdueError, now, until
from compmem.loop.loop import Loop, LoopResult, Outcome, ReadRequest, ScoreRequest
from compmem.schema import (
    Answer,
    AnswerToken,
    Event,
    Evidence,
    MemoryBlock,
    Reader,
    Recall,
    Request,
    ScoringReader,
    Step,
    Usage,
    WorkingMemory,
)
from compmem.threads import in_thread

logger = logging.getLogger(__name__)

T = TypeVar("T")

_CITED: Final = re.compile(r"\[(\d{1,4}(?:\s{0,3},\s{0,3}\d{1,4}){0,31})\]")

LEAST_SECONDS: Final = 1e-3
"""Least seconds for a loop that starts shortly before the deadline."""

TIME_UP: Final = "The time was over before anything was found."
"""The answer if there is neither evidence nor a note at the deadline."""


class Inline:
    """Runs everything in the caller's thread, for sync callers."""

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """The result of a function that does not call a reader."""
        return function(*args)

    @asynccontextmanager
    async def entered(self, manager: AbstractContextManager[T]) -> AsyncIterator[T]:
        """The value of a context manager, which is closed at the end of the block."""
        with manager as value:
            yield value

    async def ask(
        self, question: str, request: ReadRequest | ScoreRequest, reader: Reader, deadline: float | None
    ) -> Outcome:
        """The result of a method of the reader.

        Raises:
            OverdueError: The reader did not return by the deadline.
        """
        with until(deadline):
            if isinstance(request, ScoreRequest):
                return _scoring(reader).score_blocks(question, request.memory, request.blocks)
            if request.relevant:
                return _scoring(reader).read(question, request.memory, request.blocks, relevant=True)
            return reader.read(question, request.memory, request.blocks)

    async def written(
        self, question: str, memory: WorkingMemory, reader: Reader, deadline: float | None
    ) -> AsyncGenerator[str | Request | Usage, None]:
        """The answer in pieces, or a request instead of an answer.

        Raises:
            OverdueError: The next piece did not come by the deadline.
        """
        pieces = iter(reader.write(question, memory))
        while True:
            with until(deadline):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece


class Threaded:
    """Runs the work of the index in threads and awaits the reader, for async callers."""

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """The result of a function that does not call a reader."""
        return await in_thread(function, *args)

    @asynccontextmanager
    async def entered(self, manager: AbstractContextManager[T]) -> AsyncIterator[T]:
        """The value of a context manager, which is closed at the end of the block."""
        value = await in_thread(manager.__enter__)
        try:
            yield value
        finally:
            manager.__exit__(None, None, None)

    async def ask(
        self, question: str, request: ReadRequest | ScoreRequest, reader: Reader, deadline: float | None
    ) -> Outcome:
        """The result of a method of the reader. Raises what `Inline.ask` raises."""
        if isinstance(request, ScoreRequest):
            return await _in_time(
                in_thread(_scoring(reader).score_blocks, question, request.memory, request.blocks), deadline
            )
        if request.relevant:
            reading = _scoring(reader).aread(question, request.memory, request.blocks, relevant=True)
        else:
            reading = reader.aread(question, request.memory, request.blocks)
        return await _in_time(reading, deadline)

    async def written(
        self, question: str, memory: WorkingMemory, reader: Reader, deadline: float | None
    ) -> AsyncGenerator[str | Request | Usage, None]:
        """The answer in pieces. Raises what `Inline.written` raises."""
        pieces = aiter(reader.awrite(question, memory))
        try:
            while (piece := await _in_time(anext(pieces, None), deadline)) is not None:
                yield piece
        finally:
            if isinstance(pieces, AsyncGenerator):
                await pieces.aclose()


Runner = Inline | Threaded
INLINE: Final = Inline()
THREADED: Final = Threaded()


async def _in_time(awaited: Awaitable[T], deadline: float | None) -> T:
    try:
        async with asyncio.timeout(None if deadline is None else deadline - now()) as limit:
            with until(deadline):
                return await awaited
    except TimeoutError:
        if limit.expired():
            raise OverdueError("the reader did not finish in time") from None
        raise


def run(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that runs with `INLINE` and so never suspends."""
    try:
        work.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a coroutine run inline does not suspend")


def iterate(stream: AsyncGenerator[T, None]) -> Generator[T, None, None]:
    """The items of an async generator that runs with `INLINE`."""
    try:
        while True:
            try:
                item = run(anext(stream))
            except StopAsyncIteration:
                return
            yield item
    finally:
        run(stream.aclose())


Again = Callable[[str, float | None], AbstractAsyncContextManager[tuple[Loop, Reader]]]
"""Makes the loop for a request of the writer, within a number of seconds, and its reader."""


async def events(
    question: str,
    loop: Loop,
    reader: Reader,
    runner: Runner = INLINE,
    *,
    seconds: float | None = None,
    quoter: Reader | None = None,
    rounds: int = 0,
    again: Again | None = None,
) -> AsyncGenerator[Event, None]:
    """Runs the loop to its end: yields each step, the answer in pieces, and at the end the whole answer.

    If the writer asks for missing facts, the loop runs again for them, and the writer sees the new blocks too.

    Args:
        question: The question.
        loop: The generator from `recall_loop`.
        reader: Reads and writes.
        runner: `INLINE` for sync callers, `THREADED` for async ones.
        seconds: Until the deadline, from now.
        quoter: A reader without a model; it writes the answer if the reader did not in time.
        rounds: Most requests of the writer.
        again: Makes the loop for a request.

    Raises:
        ReaderError: The reader failed; the error carries the steps so far.
    """
    began = now()
    deadline = None if seconds is None else began + seconds
    steps, pieces, cost = list[Step](), list[str](), Usage()
    found: LoopResult | None = None
    request = ""
    try:
        async with AsyncExitStack() as stack:
            while True:
                async with aclosing(_loop_events(question, loop, reader, runner, deadline)) as loop_events:
                    async for made in loop_events:
                        if isinstance(made, LoopResult):
                            found = made if found is None else _merged(found, made)
                        else:
                            steps.append(replace(made, number=len(steps) + 1, request=request))
                            yield steps[-1]
                assert found is not None, "a loop ends with a result"
                may_ask = (
                    again is not None and cost.rounds < rounds and found.stop_reason not in ("seconds", "cancelled")
                )
                memory = replace(found.memory, may_ask=may_ask and bool(found.memory.blocks))
                request = ""
                try:
                    async with aclosing(runner.written(question, memory, reader, deadline)) as written:
                        async for piece in written:
                            if isinstance(piece, Usage):
                                cost += piece
                            elif isinstance(piece, Request):
                                request = piece.text
                            else:
                                pieces.append(piece)
                                yield AnswerToken(text=piece)
                except OverdueError:
                    found = replace(found, stop_reason="seconds")
                    if not "".join(pieces).strip():
                        found, text = await runner.call(_without_model, question, found, quoter)
                        pieces.append(text)
                        yield AnswerToken(text=text)
                    break
                if again is None or not request or not memory.may_ask:
                    break
                cost += Usage(rounds=1)
                left = None if deadline is None else max(deadline - now(), LEAST_SECONDS)
                loop, reader = await stack.enter_async_context(again(request, left))
    except ReaderError as error:
        error.steps = tuple(steps)
        raise
    assert found is not None, "a loop ends with a result"
    usage = replace(found.usage + cost, seconds=now() - began)
    yield _answer(question, replace(found, steps=tuple(steps), usage=usage), "".join(pieces))


async def run_loop(
    question: str,
    loop: Loop,
    reader: Reader,
    runner: Runner = INLINE,
    *,
    seconds: float | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> LoopResult:
    """Runs the loop without writing an answer; `on_step` gets each step. Arguments as in `events`."""
    deadline = None if seconds is None else now() + seconds
    async with aclosing(_loop_events(question, loop, reader, runner, deadline)) as loop_events:
        async for made in loop_events:
            if isinstance(made, LoopResult):
                return made
            on_step(made)
    raise AssertionError("a loop ends with a result")


async def _loop_events(
    question: str, loop: Loop, reader: Reader, runner: Runner, deadline: float | None
) -> AsyncGenerator[Step | LoopResult, None]:
    """The steps of the loop as they are made, and at the end its result."""
    reply: Outcome = None
    while True:
        item = await runner.call(_advance, loop, reply)
        reply = None
        if isinstance(item, ReadRequest | ScoreRequest):
            try:
                reply = await runner.ask(question, item, reader, deadline)
            except OverdueError as late:
                reply = late
        else:
            yield item
            if isinstance(item, LoopResult):
                return


def _advance(loop: Loop, reply: Outcome) -> ReadRequest | ScoreRequest | Step | LoopResult:
    # StopIteration cannot pass through a thread's future, so the end of the loop is returned as a value.
    try:
        return loop.send(reply)
    except StopIteration as end:
        result: LoopResult = end.value
        return result


def _scoring(reader: Reader) -> ScoringReader:
    assert isinstance(reader, ScoringReader), "a loop that weighs has a reader that can"
    return reader


def _without_model(question: str, run_loop: LoopResult, quoter: Reader | None) -> tuple[LoopResult, str]:
    """An answer without a model: quotations of evidence or of the best blocks, else the notes."""
    memory = run_loop.memory
    if quoter and not memory.text.strip() and memory.blocks:
        reading = quoter.read(question, memory, memory.blocks)
        if reading.update:
            run_loop = replace(run_loop, memory=reading.memory, kept=run_loop.shown)
    memory = run_loop.memory
    if quoter and memory.evidence:
        quoted = "".join(piece for piece in quoter.write(question, memory) if isinstance(piece, str))
        return replace(run_loop, shown=()), quoted
    return run_loop, memory.text.strip() or TIME_UP


def citations(text: str) -> set[int]:
    """The numbers cited in a text, as in `[1]` or `[1, 3]`."""
    return {int(number) for marks in _CITED.findall(text) for number in marks.split(",")}


def _merged(first: LoopResult, more: LoopResult) -> LoopResult:
    """The combined result of two loops for one question; blocks that the second found are shown first.

    Chunks are identified by their ids, since a write between the two loops may have renumbered blocks.
    """
    kept = {r.chunk.id for r in first.kept}
    shown = [*zip(first.shown, first.memory.blocks, strict=True)]
    new = [*zip(more.shown, more.memory.blocks, strict=True)]
    ordered: dict[str, tuple[Recall, MemoryBlock]] = {}
    for recall, block in [*(s for s in shown if s[0].chunk.id in kept), *new, *shown]:
        ordered.setdefault(recall.chunk.id, (recall, block))
    lines = dict.fromkeys([*first.memory.text.split("\n"), *more.memory.text.split("\n")])
    quoted: dict[tuple[str, int], Evidence] = {}
    for evidence in (*first.memory.evidence, *more.memory.evidence):
        quoted.setdefault((evidence.chunk.id, evidence.start), evidence)
    return LoopResult(
        memory=WorkingMemory(
            text="\n".join(filter(None, lines)),
            evidence=tuple(quoted.values()),
            blocks=tuple(block for _, block in ordered.values()),
        ),
        steps=(*first.steps, *more.steps),
        scores=first.scores | more.scores,
        kept=(*first.kept, *more.kept),
        usage=first.usage + more.usage,
        stop_reason=more.stop_reason,
        shown=tuple(recall for recall, _ in ordered.values()),
    )


def _answer(question: str, run_loop: LoopResult, text: str) -> Answer:
    if 0 < len(run_loop.steps) == run_loop.usage.malformed_replies:
        logger.warning(
            "none of the model's %d replies followed the format, so it took no notes; such a model answers better with "
            "RecallConfig(writer=...)",
            len(run_loop.steps),
        )
    quoted = {e.chunk.id for e in run_loop.memory.evidence}
    rests_on = run_loop.shown or [r for r in run_loop.kept if not quoted or r.chunk.id in quoted]
    sources = {r.chunk.id: r for r in rests_on}.values()
    cited = citations(text) if run_loop.shown else set()
    return Answer(
        question=question,
        text=text.strip(),
        found=bool(run_loop.memory.text.strip()),
        sources=tuple(replace(r, cited=n in cited) for n, r in enumerate(sources, start=1)),
        evidence=run_loop.memory.evidence,
        steps=run_loop.steps,
        working_memory=run_loop.memory.text,
        usage=run_loop.usage,
        stop_reason=run_loop.stop_reason,
    )
