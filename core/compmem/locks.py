"""A lock that a forked child can use, whatever its parent's threads held when it was forked."""

import os
import threading
import weakref
from types import TracebackType
from typing import Any, Self

import filelock  # noqa: F401  its own wait for a fork, registered first, comes after ours: a writer needs it to end

LONGEST_WAIT = 10.0
"""Seconds that a fork waits for a lock."""


class Lock:
    """A reentrant lock, made anew in a forked child: the thread that held it does not exist there.

    Args:
        forks_wait: A fork waits for it, for `LONGEST_WAIT` seconds at most.
    """

    def __init__(self, *, forks_wait: bool = False) -> None:
        self.forks_wait = forks_wait
        self._lock = threading.RLock()
        self._held: list[Any] = []
        self._owner: int | None = None
        _locks.add(self)

    def __enter__(self) -> Self:
        if self.forks_wait and self._owner != threading.get_ident():
            _passage.wait(LONGEST_WAIT)
        lock = self._lock
        lock.acquire()
        self._took(lock)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lock = self._held.pop()
        if not self._held:
            self._owner = None
        lock.release()  # not `_lock`: a fork may have come in between

    def acquire(self, seconds: float) -> bool:
        """Take it within some seconds; whether it was free."""
        lock = self._lock
        taken = lock.acquire(timeout=seconds)
        if taken:
            self._took(lock)
        return taken

    def renew(self) -> None:
        """Make it free, in a forked child."""
        self._lock = threading.RLock()
        self._owner = None

    def _took(self, lock: Any) -> None:
        self._held.append(lock)
        self._owner = threading.get_ident()


_locks: "weakref.WeakSet[Lock]" = weakref.WeakSet()
_forking = threading.local()
_passage = threading.Event()
"""Cleared while a fork waits, so that a thread which writes again and again lets it pass."""
_passage.set()


def _wait() -> None:
    _passage.clear()
    _forking.locks = [lock for lock in list(_locks) if lock.forks_wait and lock.acquire(LONGEST_WAIT)]


def _release() -> None:
    for lock in reversed(_forking.locks):
        lock.__exit__(None, None, None)
    _forking.locks = []
    _passage.set()


def _renew() -> None:
    global _passage
    _passage = threading.Event()
    _release()
    for lock in list(_locks):
        lock.renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait, after_in_parent=_release, after_in_child=_renew)
