"""What one request may take, and how many are worked on at once."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of a server.

    Raises:
        ValueError: One is not above 0.
    """

    body_bytes: int = 8 << 20
    """Bytes of a request's body."""
    question_characters: int = 4000
    documents: int = 1000
    """Documents added by one request, or listed in one answer."""
    k: int = 100
    """Blocks in one answer of `/recall`."""
    at_once: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Questions worked on at once."""
    waiting: int = 128
    """Questions that may wait for their turn; a further one is refused with status 503."""
    wait_seconds: float = 30.0
    """Longest wait for a turn."""
    answer_seconds: float = 60.0
    """After so long a question is answered with what is known, and after twice as long it is given up."""
    body_seconds: float = 20.0
    """Longest time that a client may take to send a body."""
    send_seconds: float = 20.0
    """Longest time that a client may take to accept one piece of a stream."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise ValueError(f"{each.name}={value!r} must be a number above 0")


class BusyError(Exception):
    """Too many are waiting, or this one has waited too long."""


class Turns:
    """Lets so many work at once, in the order in which they came; some may wait, further ones are refused."""

    def __init__(self, at_once: int, waiting: int, seconds: float) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._most = waiting
        self._seconds = seconds
        self.waiting = 0
        """How many wait now."""

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """One turn, for the block.

        Raises:
            BusyError: Too many are waiting, or it took too long.
        """
        if self._free.locked() and self.waiting >= self._most:
            raise BusyError
        self.waiting += 1
        try:
            async with asyncio.timeout(self._seconds):
                await self._free.acquire()
        except TimeoutError as error:
            raise BusyError from error
        finally:
            self.waiting -= 1
        try:
            yield
        finally:
            self._free.release()
