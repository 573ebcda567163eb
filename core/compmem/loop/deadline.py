"""When the time for a question is up, as whatever waits on its behalf needs to know."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from compmem.errors import ReaderError

_UNTIL: Final = ContextVar[float | None]("compmem_until", default=None)


class OverdueError(ReaderError):
    """The time for a question was up before a call of its reader had returned."""


def now() -> float:
    """Seconds by the clock that all deadlines are moments of."""
    return time.monotonic()


@contextmanager
def until(moment: float | None) -> Iterator[None]:
    """Within the block, the time is up at this moment of `now`; None: never."""
    token = _UNTIL.set(moment)
    try:
        yield
    finally:
        _UNTIL.reset(token)


def seconds_left() -> float | None:
    """Seconds until the time is up; None where there is no limit.

    Raises:
        OverdueError: It is up.
    """
    moment = _UNTIL.get()
    if moment is None:
        return None
    seconds = moment - now()
    if seconds <= 0:
        raise OverdueError("the time for the question was up")
    return seconds
