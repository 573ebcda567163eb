"""The driver of the loop: it serves the loop's requests and writes the answer at the end.

The driver is async code with a runner. `Inline` works in the caller's thread and never suspends, so a sync caller runs
the same code without an event loop and without another thread. `Threaded` never blocks the event loop.

A read that has not returned by the deadline (`RecallConfig.max_seconds`) is abandoned, and its step is lost. Writing is
abandoned too; see `compmem.loop.answering`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Generator
from contextlib import (
    AbstractContextManager,
    aclosing,
    asynccontextmanager,
)
from typing import Any, Final, TypeVar

from compmem.deadline import OverdueError, now, until
from compmem.loop.loop import Loop, LoopResult, Outcome, ReadRequest, ScoreRequest
from compmem.schema import (
    Reader,
    Request,
    ScoringReader,
    Step,
    Usage,
    WorkingMemory,
)
from compmem.threads import in_thread, in_waiting_thread

T = TypeVar("T")


class Inline:
    """Runs everything in the caller's thread, for sync callers."""

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """The result of a function that does not call a reader."""
        return function(*args)

    @asynccontextmanager
    async def enter(self, manager: AbstractContextManager[T]) -> AsyncIterator[T]:
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

    async def write(
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
    """Runs the work of the index in threads and awaits the reader, for async callers.

    Args:
        waits: The work of the index itself waits for the event loop.
    """

    def __init__(self, *, waits: bool = False) -> None:
        self._in_thread = in_waiting_thread if waits else in_thread

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """The result of a function that does not call a reader."""
        return await self._in_thread(function, *args)

    @asynccontextmanager
    async def enter(self, manager: AbstractContextManager[T]) -> AsyncIterator[T]:
        """The value of a context manager, which is closed at the end of the block."""
        value = await self._in_thread(manager.__enter__)
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

    async def write(
        self, question: str, memory: WorkingMemory, reader: Reader, deadline: float | None
    ) -> AsyncGenerator[str | Request | Usage, None]:
        """The answer in pieces. Raises what `Inline.write` raises."""
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
WAITING: Final = Threaded(waits=True)


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


async def run_loop(
    question: str,
    loop: Loop,
    reader: Reader,
    runner: Runner = INLINE,
    *,
    seconds: float | None = None,
    on_step: Callable[[Step], None] = lambda step: None,
) -> LoopResult:
    """Runs the loop without writing an answer; `on_step` gets each step."""
    deadline = None if seconds is None else now() + seconds
    async with aclosing(loop_events(question, loop, reader, runner, deadline)) as items:
        async for item in items:
            if isinstance(item, LoopResult):
                return item
            on_step(item)
    raise AssertionError("a loop ends with a result")


async def loop_events(
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
            except OverdueError as error:
                reply = error
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
    assert isinstance(reader, ScoringReader), "the reader of a ScoreRequest can score"
    return reader
