"""A lock that a forked child can use, whichever lock the parent's threads held at the time of the fork."""

import os
import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import filelock  # noqa: F401  its fork handler must run after ours: a writer needs its file lock to finish

MAX_WAIT_SECONDS = 10.0
"""Maximum time that a fork waits for all locks together."""


def after_fork(renew: Callable[[], None]) -> None:
    """Calls a function in every forked child, on systems that fork."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=renew)


class Lock:
    """A reentrant lock, created anew in a forked child, where the thread that held it does not exist.

    Args:
        forks_wait: A fork waits for the lock, for at most `MAX_WAIT_SECONDS` seconds. Meanwhile a thread that holds no
            such lock waits for the fork.
    """

    def __init__(self, *, forks_wait: bool = False) -> None:
        self.forks_wait = forks_wait
        self._lock = threading.RLock()
        self._held: list[Any] = []
        _locks.add(self)

    def __enter__(self) -> Self:
        if self.forks_wait and not _holding.count:
            _no_fork_waiting.wait(MAX_WAIT_SECONDS)
        lock = self._lock
        lock.acquire()
        self._record_acquired(lock)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock = self._held.pop()
        _holding.count -= self.forks_wait
        lock.release()  # not `_lock`, which a fork may have replaced

    def acquire(self, seconds: float) -> bool:
        """Acquire it within some seconds; returns whether that succeeded."""
        lock = self._lock
        taken = lock.acquire(timeout=seconds)
        if taken:
            self._record_acquired(lock)
        return taken

    def renew(self) -> None:
        """Replace it by a free lock, in a forked child."""
        self._lock = threading.RLock()

    def _record_acquired(self, lock: Any) -> None:
        self._held.append(lock)
        _holding.count += self.forks_wait


class _Holding(threading.local):
    """How many locks that a fork waits for a thread holds."""

    count = 0


_holding = _Holding()
_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()
_forking = threading.local()
_no_fork_waiting = threading.Event()
"""Cleared while a fork waits, so that a thread which writes repeatedly lets the fork go first."""
_no_fork_waiting.set()


def _wait() -> None:
    """Acquire the locks that a fork waits for: all at once, since a thread with one of them may need another."""
    _no_fork_waiting.clear()
    end = time.monotonic() + MAX_WAIT_SECONDS
    wanted = [lock for lock in list(_locks) if lock.forks_wait]
    while True:
        _forking.locks = [lock for lock in wanted if lock.acquire(0)]
        taken = next((lock for lock in wanted if lock not in _forking.locks), None)
        left = end - time.monotonic()
        if taken is None or left <= 0:
            return
        for lock in reversed(_forking.locks):
            lock.__exit__(None, None, None)
        if taken.acquire(left):
            taken.__exit__(None, None, None)


def _release() -> None:
    for lock in reversed(_forking.locks):
        lock.__exit__(None, None, None)
    _forking.locks = []
    _no_fork_waiting.set()


def _renew() -> None:
    global _no_fork_waiting
    _no_fork_waiting = threading.Event()
    _release()
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_parent=_release, after_in_child=_renew)
