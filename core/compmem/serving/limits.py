"""Limits of a request, and of the number of requests at work at once."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields

from compmem.checks import check_integer, check_positive
from compmem.config import RecallConfig

MAX_WAITING_CHARS = 64 << 20
"""Maximum number of characters of all documents that wait to be added."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The limits of a server.

    Raises:
        ValueError: One is not above 0, is infinite, or no whole number where it counts something.
    """

    body_bytes: int = 8 << 20
    """Bytes of a request's body."""
    question_characters: int = 4000
    documents: int = 1000
    """Documents added by one request, or listed in one response."""
    k: int = 100
    """Blocks in one response of `/recall`."""
    at_once: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Questions answered at once."""
    waiting: int = 128
    """Questions that may wait; more are refused with status 503."""
    wait_seconds: float = 30.0
    """Maximum time that a question waits."""
    answer_seconds: float = 60.0
    """Seconds after which a question is answered with what is known; after twice as long it fails."""
    body_seconds: float = 20.0
    """Maximum time for a client to send a body."""
    send_seconds: float = 20.0
    """Maximum time for a client to accept one piece of a stream."""

    def __post_init__(self) -> None:
        for each in fields(self):
            check = check_positive if each.name.endswith("_seconds") else check_integer
            check(each.name, getattr(self, each.name))

    def limiter(self, at_once: int) -> "ConcurrencyLimiter":
        """A limiter of requests at work at once, with these limits for those that wait."""
        return ConcurrencyLimiter(at_once, self.waiting, self.wait_seconds)

    def with_time_limit(self, config: RecallConfig) -> RecallConfig:
        """The settings with `answer_seconds` as their limit if they have none."""
        return config if config.max_seconds is not None else config.replace(max_seconds=self.answer_seconds)


class BusyError(Exception):
    """Too many requests are waiting, or this one has waited too long."""


class ConcurrencyLimiter:
    """Limits how many requests are at work at once. Others wait in order; when too many wait, more are refused."""

    def __init__(self, at_once: int, waiting: int, seconds: float) -> None:
        self._slots = asyncio.Semaphore(at_once)
        self._max_waiting = waiting
        self._seconds = seconds
        self._characters = 0
        self.waiting = 0
        """How many are waiting."""

    @asynccontextmanager
    async def slot(self, characters: int = 0) -> AsyncIterator[None]:
        """A slot, held inside the block, for a request that keeps this many characters in memory while it waits.

        Raises:
            BusyError: Too many are waiting, or too many characters, or the wait was too long.
        """
        full = self.waiting >= self._max_waiting or self._characters + characters > MAX_WAITING_CHARS
        if self._slots.locked() and full:
            raise BusyError
        self.waiting += 1
        self._characters += characters
        try:
            async with asyncio.timeout(self._seconds):
                await self._slots.acquire()
        except TimeoutError as error:
            raise BusyError from error
        finally:
            self.waiting -= 1
            self._characters -= characters
        try:
            yield
        finally:
            self._slots.release()
