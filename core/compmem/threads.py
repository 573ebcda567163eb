"""Threads of our own, so that neither the application's default executor nor our own work waits for a chat model."""

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any, Final, TypeVar

from compmem.errors import ReaderError

T = TypeVar("T")

MOST_AT_ONCE: Final = 64
"""Calls of chat models that are waited for at once; further ones wait for their turn."""

MOST_ABANDONED: Final = 64
"""Calls of chat models that nobody waits for and that have not returned; with so many, no further one is made."""


class CallThreads:
    """Makes calls that may never return, each in a daemon thread.

    The call that is abandoned leaves its place to the next one. So calls that hang delay no others, and there are never
    more than `MOST_AT_ONCE + MOST_ABANDONED` threads.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._waiting: dict[Future[Any], Callable[[], Any]] = {}
        self._running: set[Future[Any]] = set()
        self._abandoned: set[Future[Any]] = set()

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """The result of the call, once it has returned.

        Raises:
            ReaderError: Too many abandoned calls have not returned.
        """
        future = Future[T]()
        with self._guard:
            if len(self._abandoned) >= MOST_ABANDONED:
                raise ReaderError(
                    f"{MOST_ABANDONED} abandoned calls of the chat model have not returned, so it is not called again: "
                    "set a timeout in the model's client"
                )
            self._waiting[future] = call
            self._start()
        return future

    def abandon(self, future: "Future[Any]") -> None:
        """Nobody waits for this call any more; one that has not begun is not made."""
        with self._guard:
            if self._waiting.pop(future, None) is not None:
                future.cancel()
            elif future in self._running:
                self._running.remove(future)
                self._abandoned.add(future)
            self._start()

    def _start(self) -> None:
        while self._waiting and len(self._running) < MOST_AT_ONCE:
            future = next(iter(self._waiting))
            call = self._waiting.pop(future)
            if future.set_running_or_notify_cancel():
                self._running.add(future)
                threading.Thread(target=self._run, args=(future, call), name="compmem-chat", daemon=True).start()

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


def chat_calls() -> CallThreads:
    """The threads of this process in which chat models are called."""
    return _calls


def submit(call: Callable[..., T], *args: Any) -> "Future[T]":
    """Does work of our own in a thread, with the caller's context variables."""
    return _work.submit(copy_context().run, call, *args)


async def in_thread(call: Callable[..., T], *args: Any) -> T:
    """`asyncio.to_thread` for work of our own."""
    return await asyncio.wrap_future(submit(call, *args))


def _renew() -> None:
    """A forked child has none of its parent's threads, and locks that one of them may have held."""
    global _calls, _work
    _calls = CallThreads()
    _work = ThreadPoolExecutor(min(32, (os.cpu_count() or 1) + 4), "compmem")


_calls: CallThreads
_work: ThreadPoolExecutor
_renew()
if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew)
