"""Any chat model as one thing: a reply in pieces, whether the callable is sync, async or streaming."""

import asyncio
import contextlib
import inspect
import os
import sys
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator, Sequence
from functools import cache
from typing import Any, Final

from compmem.errors import ReaderError
from compmem.schema import Message

ChatModel = Callable[[Sequence[Message]], Any]
"""A callable `messages -> text`: sync, async, or giving an iterator or async iterator of pieces."""

_END: Final = object()


def pieces(chat: ChatModel, messages: Sequence[Message]) -> Generator[str, None, None]:
    """The reply in pieces, for a caller outside any event loop.

    Raises:
        ReaderError: The model failed, gave something that is not text, or is async inside a running event loop.
    """
    reply = _ask(chat, messages)
    if inspect.isawaitable(reply) or isinstance(reply, AsyncIterator):
        yield from _waited_for(reply)
    elif isinstance(reply, Iterator):
        while (piece := _next(reply)) is not _END:
            yield _text(piece)
    else:
        yield _text(reply)


async def apieces(chat: ChatModel, messages: Sequence[Message]) -> AsyncGenerator[str, None]:
    """The reply in pieces; what is sync runs in a thread.

    Raises:
        ReaderError: The model failed or gave something that is not text.
    """
    if inspect.iscoroutinefunction(chat) or inspect.isasyncgenfunction(chat):
        reply = _ask(chat, messages)
    else:
        reply = await asyncio.to_thread(_ask, chat, messages)
    async with contextlib.aclosing(_flat(reply)) as stream:
        async for piece in stream:
            yield piece


@contextlib.contextmanager
def _chat_errors() -> Iterator[None]:
    """Turns whatever the chat model raises into a `ReaderError` that names it."""
    try:
        yield
    except ReaderError:
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        raise ReaderError(f"the chat model failed: {type(error).__name__}{': ' if said else ''}{said}") from error


def _ask(chat: ChatModel, messages: Sequence[Message]) -> object:
    with _chat_errors():
        return chat(messages)


def _next(stream: Iterator[object]) -> object:
    with _chat_errors():
        return next(stream, _END)


def _text(piece: object) -> str:
    if not isinstance(piece, str):
        raise ReaderError(f"the chat model gave a {type(piece).__name__}, not text")
    return piece


async def _flat(reply: object) -> AsyncGenerator[str, None]:
    """The pieces of whatever a chat model returned."""
    if inspect.isawaitable(reply):
        with _chat_errors():
            reply = await reply
    try:
        if isinstance(reply, AsyncIterator):
            while (piece := await _anext(reply)) is not _END:
                yield _text(piece)
        elif isinstance(reply, Iterator):
            while (piece := await asyncio.to_thread(_next, reply)) is not _END:
                yield _text(piece)
        else:
            yield _text(reply)
    finally:
        if isinstance(reply, AsyncGenerator):
            await reply.aclose()


async def _anext(stream: AsyncIterator[object]) -> object:
    with _chat_errors():
        return await anext(stream, _END)


def _waited_for(reply: object) -> Generator[str, None, None]:
    """The pieces of an async reply, waited for in a thread's event loop.

    Raises:
        ReaderError: This thread runs an event loop, which waiting would block.
    """
    if _inside_a_loop():
        if inspect.iscoroutine(reply):
            reply.close()
        raise ReaderError("the chat model is async and an event loop is running here: await the async method instead")
    stream = _flat(reply)
    try:
        while (piece := _wait(_anext(stream))) is not _END:
            yield _text(piece)
    finally:
        _wait(_closed(stream))


def _inside_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def _closed(stream: AsyncGenerator[str, None]) -> None:
    await stream.aclose()


def _wait(coroutine: Coroutine[Any, Any, object]) -> object:
    """The result of a coroutine run in the shared loop."""
    future = asyncio.run_coroutine_threadsafe(coroutine, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


_starting = threading.Lock()


def _loop() -> asyncio.AbstractEventLoop:
    with _starting:
        return _shared_loop()


@cache
def _shared_loop() -> asyncio.AbstractEventLoop:
    """One event loop for all sync calls of async models: their clients keep connections that are bound to a loop."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="compmem-chat", daemon=True).start()
    return loop


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_shared_loop.cache_clear)
