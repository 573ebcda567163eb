"""Separate threads, so that neither the default executor of the application nor the index waits for a chat model."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeVar

from compmem.errors import ReaderError
from compmem.locks import after_fork

T = TypeVar("T")

MAX_CONCURRENT_CALLS: Final = 64
"""Maximum number of concurrent calls of chat models; more calls wait."""

MAX_ABANDONED_CALLS: Final = 64
"""Maximum number of abandoned calls of chat models that have not returned; above, no new call is made."""


class CallThreads:
    """Runs calls that may never return, each in a daemon thread.

    An abandoned call gives its place to the next one. So calls that hang do not delay others, and there are never more
    than `MAX_CONCURRENT_CALLS + MAX_ABANDONED_CALLS` threads.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._queued: dict[Future[Any], Callable[[], Any]] = {}
        self._running: set[Future[Any]] = set()
        self._abandoned: set[Future[Any]] = set()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """A future with the result of the call.

        Raises:
            ReaderError: Too many abandoned calls have not returned.
        """
        future = Future[T]()
        with self._guard:
            if len(self._abandoned) >= MAX_ABANDONED_CALLS:
                raise _too_many()
            self._queued[future] = call
            self._start()
        return future

    def abandon(self, future: "Future[Any]") -> None:
        """Stops waiting for a call; if it has not begun, it is not made. Too many that hang end the calls that wait."""
        refused = list[Future[Any]]()
        with self._guard:
            if self._queued.pop(future, None) is not None:
                future.cancel()
            elif future in self._running:
                self._running.remove(future)
                self._abandoned.add(future)
            if len(self._abandoned) >= MAX_ABANDONED_CALLS:
                refused += [one for one in self._queued if one.set_running_or_notify_cancel()]
                self._queued.clear()
            self._start()
        for one in refused:
            one.set_exception(_too_many())

    def _start(self) -> None:
        while self._queued and len(self._running) < MAX_CONCURRENT_CALLS:
            future = next(iter(self._queued))
            call = self._queued.pop(future)
            if future.set_running_or_notify_cancel():
                self._running.add(future)
                try:
                    threading.Thread(target=self._run, args=(future, call), name="compmem-chat", daemon=True).start()
                except RuntimeError as error:  # the system has no thread left
                    self._running.remove(future)
                    future.set_exception(ReaderError(f"no thread is left for the chat model: {error}"))

    def _run(self, future: "Future[T]", call: Callable[[], T]) -> None:
        try:
            result = call()
        except BaseException as error:
            finish = partial(future.set_exception, error)
        else:
            finish = partial(future.set_result, result)
        with self._guard:
            self._running.discard(future)
            self._abandoned.discard(future)
            self._start()
        finish()


def _too_many() -> ReaderError:
    return ReaderError(
        f"{MAX_ABANDONED_CALLS} abandoned calls of the chat model have not returned, so it is not called again: "
        "set a timeout in the model's client"
    )


MAX_WAITING_THREADS: Final = 10_000
"""Maximum number of threads that wait for an event loop at once; each is one question."""


def chat_calls() -> CallThreads:
    """The threads of this process for calls of chat models."""
    return _calls


def submit(call: Callable[..., T], *args: Any) -> "Future[T]":
    """Runs work of the index in a thread, with the caller's context variables."""
    return _index_pool.submit(copy_context().run, call, *args)


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """`asyncio.to_thread` for work of the index."""
    return await asyncio.wrap_future(submit(call, *args))


async def in_chat_thread(call: Callable[..., T], *args: Any) -> T:
    """Awaits a call of a chat model in a thread of its own; it is abandoned if the wait is cancelled."""
    future = chat_calls().submit(partial(call, *args))
    try:
        return await asyncio.wrap_future(future)
    except BaseException:
        chat_calls().abandon(future)
        raise


async def in_waiting_thread(call: Callable[..., T], *args: Any) -> T:
    """`in_thread` for work that waits for the event loop, which may itself wait for a thread of `in_thread`."""
    return await asyncio.wrap_future(_waiting_pool.submit(copy_context().run, call, *args))


def _renew() -> None:
    """A forked child has no threads of its parent, and its locks may be held by one of them."""
    global _calls, _index_pool, _waiting_pool
    _calls = CallThreads()
    _waiting_pool = ThreadPoolExecutor(MAX_WAITING_THREADS, "compmem-waiting")
    _index_pool = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4), "compmem")


_calls: CallThreads
_index_pool: ThreadPoolExecutor
_waiting_pool: ThreadPoolExecutor
_renew()
after_fork(_renew)
