"""Calls of several threads in one batch: a server's requests that encode at the same time share one forward pass."""

import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate

import numpy as np

from compmem.locks import after_fork
from compmem.schema import Vectors

MAX_MERGED_TEXTS = 512
"""No other call joins a batch with more texts than this."""


@dataclass(frozen=True, slots=True, eq=False)
class _Call:
    """The texts of one caller, and their vectors when they are known."""

    texts: Sequence[str]
    vectors: Future[Vectors] = field(default_factory=Future)


class MergedCalls:
    """A function of texts that runs a few times at once; calls that come above that wait, and make up the next batch.

    No call waits for others to come: where a place is free, it runs in the caller's thread.

    Args:
        run: Texts to vectors `[texts, dim]`; the vector of a text must not depend on the others but for rounding.
        places: How many may run at once, now.
    """

    def __init__(self, run: Callable[[Sequence[str]], Vectors], places: Callable[[], int] = lambda: 1) -> None:
        self._function = run
        self._max_running = places
        self.renew()
        _merged.add(self)

    def renew(self) -> None:
        """Forget all calls, in a forked child, where their threads do not exist."""
        self._guard = threading.Lock()
        self._running = 0
        self._waiting: deque[_Call] = deque()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """The vectors of these texts. Raises what the function raises for them alone."""
        call = None
        with self._guard:
            if self._running < self._max_running():
                self._running += 1
            else:
                call = _Call(texts)
                self._waiting.append(call)
        if call is not None:
            return call.vectors.result()
        try:
            return self.run(texts)
        finally:
            self._finish()

    def run(self, texts: Sequence[str]) -> Vectors:
        """The vectors of these texts, at once."""
        return self._function(texts)

    def _finish(self) -> None:
        """Gives the place to the calls that wait; if there are many, to the first ones."""
        batch: list[_Call] = []
        with self._guard:
            while self._waiting and sum(len(call.texts) for call in batch) < MAX_MERGED_TEXTS:
                batch.append(self._waiting.popleft())
            if not batch:
                self._running -= 1
        if batch:
            begun = threading.Lock()
            try:
                _threads().submit(self._run_batch, batch, begun)
            except RuntimeError:
                # No thread could be started; if there is another one, it may run the batch all the same.
                self._run_batch(batch, begun)

    def _run_batch(self, batch: Sequence[_Call], begun: threading.Lock) -> None:
        if not begun.acquire(blocking=False):
            return
        try:
            self._encode(batch)
        finally:
            self._finish()

    def _encode(self, batch: Sequence[_Call]) -> None:
        ends = list(accumulate(len(call.texts) for call in batch))
        try:
            parts = np.split(self.run([text for call in batch for text in call.texts]), ends[:-1])
        except BaseException as error:
            if len(batch) == 1:
                batch[0].vectors.set_exception(error)
            else:
                for call in batch:
                    self._encode([call])
            return
        for call, vectors in zip(batch, parts, strict=True):
            call.vectors.set_result(vectors)


_merged: "weakref.WeakSet[MergedCalls]" = weakref.WeakSet()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, "compmem-questions")


def _renew() -> None:
    _threads.cache_clear()
    for calls in list(_merged):
        calls.renew()


after_fork(_renew)
