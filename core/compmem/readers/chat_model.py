"""One interface to any chat model: a reply in pieces, whether the callable is sync, async or streaming.

A call that does not return by the deadline of the question is abandoned: an async call is cancelled, a sync call
continues in its own thread.
"""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Generator,
    Iterator,
    Sequence,
)
from concurrent.futures import Future
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final, TypeVar, cast

from compmem.deadline import OverdueError, seconds_left
from compmem.errors import ReaderError, chat_failure
from compmem.locks import after_fork
from compmem.schema import Message
from compmem.text.unicode import valid
from compmem.threads import chat_calls, in_chat_thread

T = TypeVar("T")

ChatModel = Callable[[Sequence[Message]], Any]
"""A callable `messages -> text`: sync, async, or returning an iterator or async iterator of pieces."""

_END: Final = object()

MAX_REPLY_CHARS: Final = 1_000_000
"""Maximum number of characters of a reply."""


def pieces(chat: ChatModel, messages: Sequence[Message]) -> Generator[str, None, None]:
    """The reply in pieces, for a caller outside any event loop.

    Raises:
        OverdueError: The deadline of the question has passed.
        ReaderError: The model failed, returned something other than text, or is async inside a running event loop.
    """
    context, checked = copy_context(), _Reply()
    within: Within = _directly if seconds_left() is None else context.run
    reply: object = _ask(chat, messages) if _is_async(chat) else _in_time(within, _ask, chat, messages)
    if inspect.isawaitable(reply) or isinstance(reply, AsyncIterator):
        yield from _async_pieces(reply, context)
    elif isinstance(reply, Iterator):
        stream = _SyncStream(reply, within)
        try:
            while (piece := _in_time(stream.next)) is not _END:
                if text := checked.text(piece):
                    yield text
        finally:
            stream.close()
    else:
        yield checked.text(reply)


async def apieces(chat: ChatModel, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
    """The reply in pieces. A sync model runs in a thread, which is abandoned if this is cancelled.

    Raises:
        OverdueError: The deadline of the question has passed.
        ReaderError: The model failed or returned something other than text.
    """
    context = copy_context()
    seconds_left()
    if _is_async(chat):
        reply = _ask(chat, messages)
    else:
        reply = await in_chat_thread(context.run, _ask, chat, messages)
    async with contextlib.aclosing(_pieces_of(reply, context)) as stream:
        async for piece in stream:
            yield piece


@contextlib.contextmanager
def _chat_errors() -> Iterator[None]:
    """Turns any exception of the chat model into a `ReaderError` that names it."""
    try:
        yield
    except ReaderError:
        raise
    except Exception as error:
        raise chat_failure(error) from error


def _is_async(chat: ChatModel) -> bool:
    """Whether a call returns an awaitable."""
    return inspect.iscoroutinefunction(chat) or inspect.isasyncgenfunction(chat)


def _ask(chat: ChatModel, messages: Sequence[Message]) -> object:
    with _chat_errors():
        return chat(messages)


class _SyncStream:
    """A sync reply, which threads read; closed as soon as no call reads it, also one that was abandoned.

    All reads and the close are made in one context, since a generator may set a variable before a piece and reset it
    after.
    """

    def __init__(self, reply: Iterator[object], within: "Within") -> None:
        self._reply = reply
        self._within = within
        self._reading = threading.Lock()
        self._ended = False

    def next(self) -> object:
        """The next piece, or `_END`."""
        try:
            with self._reading:
                return self._within(_next, self._reply)
        finally:
            if self._ended:
                self.close()

    def close(self) -> None:
        """Closes the reply if it can be closed; while a call is reading it, that call closes it at its end."""
        self._ended = True
        if callable(close := getattr(self._reply, "close", None)) and self._reading.acquire(blocking=False):
            try:
                self._within(close)
            finally:
                self._reading.release()


class _AsyncStream:
    """An async reply, read and closed by one task, so in one context, whichever tasks ask for its pieces."""

    def __init__(self, reply: AsyncIterator[object], context: Context) -> None:
        self._requests = asyncio.Queue[asyncio.Future[object]]()
        self._task = asyncio.get_running_loop().create_task(self._read(reply), context=context)

    async def next(self) -> object:
        """The next piece, or `_END`."""
        piece = asyncio.get_running_loop().create_future()
        self._requests.put_nowait(piece)
        return await piece

    async def close(self) -> None:
        """Ends the reading and closes the reply if it can be closed; what its own cleaning up raises is dropped."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self, reply: AsyncIterator[object]) -> None:
        try:
            while True:
                request = await self._requests.get()
                try:
                    with _chat_errors():
                        piece = await anext(reply, _END)
                    finish = partial(request.set_result, piece)
                except ReaderError as error:
                    finish = partial(request.set_exception, error)
                except BaseException:
                    request.cancel()
                    raise
                if not request.done():
                    finish()
        finally:
            close = getattr(reply, "aclose", None) or getattr(reply, "close", None)
            if callable(close) and inspect.isawaitable(closing := close()):
                await closing


Within = Callable[..., Any]
"""Makes a call, directly or in a context."""


def _directly(call: Callable[..., T], *args: Any) -> T:
    return call(*args)


def _next(reply: Iterator[object]) -> object:
    with _chat_errors():
        return next(reply, _END)


@dataclass(slots=True)
class _Reply:
    """Checks the pieces of one reply."""

    length: int = 0

    def text(self, piece: object) -> str:
        if not isinstance(piece, str):
            raise ReaderError(f"the chat model gave a {type(piece).__name__}, not text")
        self.length += len(piece) or 1
        if self.length > MAX_REPLY_CHARS:
            raise ReaderError(f"the chat model's reply has more than {MAX_REPLY_CHARS:,} characters")
        return valid(piece)


def _in_time(call: Callable[..., T], *args: Any) -> T:
    """The call's result; if there is a deadline, it runs in a thread, so that it can be abandoned."""
    seconds = seconds_left()
    if seconds is None:
        return call(*args)
    future = chat_calls().submit(partial(call, *args))
    try:
        return _result(future, seconds)
    except BaseException:
        chat_calls().abandon(future)
        raise


def _result(future: "Future[T]", seconds: float | None) -> T:
    try:
        return future.result(None if seconds is None else min(seconds, threading.TIMEOUT_MAX))
    except TimeoutError:
        if future.done():  # the call raised it, or ended at that moment
            return future.result()
        raise OverdueError("the chat model did not reply in time") from None


async def _pieces_of(reply: object, context: Context) -> AsyncGenerator[str, None]:
    """The pieces of a chat model's return value of any kind."""
    checked = _Reply()
    if inspect.isawaitable(reply):
        with _chat_errors():
            reply = await reply
    if isinstance(reply, AsyncIterator):
        read = _AsyncStream(reply, context)
        try:
            while (piece := await read.next()) is not _END:
                if text := checked.text(piece):
                    yield text
        finally:
            await read.close()
    elif isinstance(reply, Iterator):
        stream = _SyncStream(reply, context.run)
        try:
            while (piece := await in_chat_thread(stream.next)) is not _END:
                if text := checked.text(piece):
                    yield text
        finally:
            stream.close()
    else:
        yield checked.text(reply)


def _async_pieces(reply: object, context: Context) -> Generator[str, None, None]:
    """The pieces of an async reply, run in the event loop of another thread.

    Raises:
        ReaderError: This thread runs an event loop, which waiting would block.
    """
    if _inside_a_loop():
        if inspect.iscoroutine(reply):
            reply.close()
        raise ReaderError("the chat model is async and an event loop is running here: await the async method instead")
    stream, loop = _pieces_of(reply, context), _loop()
    try:
        while True:
            seconds = seconds_left()
            future = asyncio.run_coroutine_threadsafe(_piece(stream, context), loop)
            try:
                piece = _result(future, seconds)
            except BaseException:
                future.cancel()
                raise
            if piece is _END:
                return
            yield cast("str", piece)
    finally:
        asyncio.run_coroutine_threadsafe(_closed(stream), loop)


async def _piece(stream: AsyncGenerator[str, None], context: Context) -> str | object:
    """The next piece in this context, or `_END`."""
    return await asyncio.get_running_loop().create_task(anext(stream, _END), context=context)


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _closed(stream: AsyncGenerator[str, None]) -> None:
    with contextlib.suppress(RuntimeError):  # it is running and is being cancelled
        await stream.aclose()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _shared_loop()


@cache
def _shared_loop() -> asyncio.AbstractEventLoop:
    """One event loop for all sync calls of async models: their clients keep connections that belong to a loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="compmem-chat-loop", daemon=True).start()
    return loop


def _renew() -> None:
    """A forked child lacks the thread that runs the loop, and its lock may be held by another thread."""
    global _starting
    _starting = threading.Lock()
    _shared_loop.cache_clear()


_starting: threading.Lock
_renew()
after_fork(_renew)
