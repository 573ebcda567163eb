"""The deadline of a question, for all code that waits for a model."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from compmem.errors import ReaderError

_DEADLINE: Final = ContextVar[float | None]("compmem_until", default=None)


class OverdueError(ReaderError):
    """The deadline of the question passed before the reader returned."""


_MIN_SECONDS: Final = 1e-9
"""Seconds given to what starts after the deadline: settings need a number above 0."""


def now() -> float:
    """Seconds of the clock that all deadlines use."""
    return time.monotonic()


def remaining(deadline: float | None) -> float | None:
    """Seconds until a deadline, a little more than 0 where it has passed; None: there is none."""
    return None if deadline is None else max(deadline - now(), _MIN_SECONDS)


@contextmanager
def until(moment: float | None) -> Iterator[None]:
    """Sets the deadline inside the block, as a value of `now`; None: no deadline."""
    token = _DEADLINE.set(moment)
    try:
        yield
    finally:
        _DEADLINE.reset(token)


def seconds_left() -> float | None:
    """Seconds until the deadline; None if there is none.

    Raises:
        OverdueError: The deadline has passed.
    """
    moment = _DEADLINE.get()
    if moment is None:
        return None
    seconds = moment - now()
    if seconds <= 0:
        raise OverdueError("the time for the question is over")
    return seconds
