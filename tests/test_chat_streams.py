"""Streams of chat models: read in one context, and closed however their reading ends."""

import asyncio
import contextvars
import threading
import time

import pytest

from compmem import deadline
from compmem.readers import chat_model
from compmem.readers.chat_model import apieces, pieces

LONG = 60.0


@pytest.fixture
def hung():
    """Set at the end of the test, so that no thread is left."""
    over = threading.Event()
    yield over
    over.set()


@pytest.mark.parametrize("how", ["deadline", "cancelled"])
async def test_a_stream_that_a_call_is_reading_is_closed_when_the_call_returns(hung, how):
    closed, reading = threading.Event(), threading.Event()

    def replying():
        try:
            yield "a"
            reading.set()
            hung.wait(LONG)
            yield "b"
        finally:
            closed.set()

    reply = replying()  # kept, so that it is not closed by being deleted

    def by_deadline():
        with deadline.until(time.monotonic() + 0.2):
            stream = pieces(lambda messages: reply, [])
            assert next(stream) == "a"
            with pytest.raises(deadline.OverdueError):
                next(stream)

    async def cancelled():
        stream = apieces(lambda messages: reply, [])
        assert await anext(stream) == "a"
        task = asyncio.ensure_future(anext(stream))
        assert await asyncio.to_thread(reading.wait, LONG)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    await (asyncio.to_thread(by_deadline) if how == "deadline" else cancelled())
    assert not closed.is_set()
    hung.set()
    assert await asyncio.to_thread(closed.wait, LONG)


SPAN = contextvars.ContextVar("span", default="none")


class Spanned:
    """A stream that is no generator; it sets a variable when it is first read, and resets it when it is closed."""

    def __init__(self):
        self.closed = threading.Event()
        self._token = None

    def __iter__(self):
        return self

    def __aiter__(self):
        return self

    def __next__(self):
        self._token = self._token or SPAN.set("asked")
        return SPAN.get()

    async def __anext__(self):
        return next(self)

    def close(self):
        SPAN.reset(self._token)
        self.closed.set()


class AsyncSpanned(Spanned):
    __iter__ = None

    async def aclose(self):
        super().close()


@pytest.mark.parametrize("kind", [Spanned, AsyncSpanned])
async def test_a_stream_of_any_kind_is_read_and_closed_in_one_context(kind):
    reply = kind()
    stream = apieces(lambda messages: reply, [])
    first = await asyncio.create_task(anext(stream))
    second = await asyncio.create_task(anext(stream))
    assert [first, second] == ["asked", "asked"]
    await asyncio.create_task(stream.aclose())
    assert reply.closed.is_set()


@pytest.mark.parametrize("kind", [Spanned, AsyncSpanned])
def test_a_sync_caller_may_leave_a_stream_of_any_kind(kind):
    reply = kind()
    stream = pieces(lambda messages: reply, [])
    assert [next(stream), next(stream)] == ["asked", "asked"]
    stream.close()
    assert reply.closed.wait(LONG)


async def test_a_stream_that_cancels_itself_does_not_hang_its_reader():
    async def chat(messages):
        yield "a"
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        async with asyncio.timeout(LONG):
            [piece async for piece in apieces(chat, [])]


def test_closing_while_a_thread_leaves_its_context_is_no_error():
    context, left, going = contextvars.copy_context(), threading.Event(), threading.Event()

    def slowly(call, *args):
        found = context.run(call, *args)
        return context.run(lambda: (left.set(), going.wait(LONG), found)[-1])

    stream = chat_model._SyncStream((piece for piece in "ab"), slowly)
    reader = threading.Thread(target=stream.next)
    reader.start()
    assert left.wait(LONG)
    stream.close()
    going.set()
    reader.join(LONG)
