"""Processes that compress documents side by side, for one process that writes."""

import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.reduction import ForkingPickler
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import torch

from compmem.checks import check_integer
from compmem.errors import CompMemError, WorkerError
from compmem.ingest.compressor import CompressedBatch, DocumentCompressor
from compmem.ingest.pipeline import CompressionTask

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

MakeCompressor = Callable[[], DocumentCompressor]
"""Makes what compresses documents; it is sent to each worker."""

TASKS_PER_WORKER: Final = 2
"""Tasks for each worker that are compressed or wait at once."""


class Workers:
    """Worker processes for the duration of the `with` block; each loads its own models if it compresses.

    They are not forks of this process, whose threads and locks a fork would not have.

    Args:
        number: How many.
        make_compressor: Makes what compresses in a worker. None: the workers do not compress.

    Raises:
        ValueError: The number is below 1, or the encoder object cannot be pickled.
    """

    def __init__(self, number: int, make_compressor: MakeCompressor | None = None) -> None:
        check_integer("workers", number)
        _check_picklable(make_compressor)
        self._number = number
        self._pool = ProcessPoolExecutor(
            number,
            mp_context=_context(),
            initializer=_initialize_worker,
            initargs=(make_compressor, max(1, torch.get_num_threads() // number)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)

    def compress(self, tasks: Iterable[CompressionTask]) -> Iterator[CompressedBatch]:
        """The tasks' documents with their blocks, in order. Raises what `map` raises."""
        return self.map(_compress, tasks)

    def map(self, work: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
        """The results of a function for items, in order; only a few items are in work or wait.

        Args:
            work: A function of a module, so that a worker finds it.
            items: What it is called with.

        Raises:
            WorkerError: A worker was killed or ran out of memory.
        """
        waiting: deque[Future[_Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(work, item))
                if len(waiting) >= TASKS_PER_WORKER * self._number:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise WorkerError(
                "a worker process ended before its work was done: it was killed, ran out of memory, or could not start "
                "(a script starts its work under `if __name__ == '__main__':`). What was committed stays; add the same "
                "documents again to complete it"
            ) from error


def _context() -> Any:
    """How workers are started: on Linux as forks of a fresh process that has imported the library once for all."""
    if not sys.platform.startswith("linux"):
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def _check_picklable(make_compressor: MakeCompressor | None) -> None:
    try:
        ForkingPickler.dumps(make_compressor)
    except CompMemError:
        raise
    except Exception as error:  # an object's own class decides what it raises
        raise ValueError(f"the encoder object cannot be sent to another process: {error}") from error


_compressor: DocumentCompressor | None = None
"""What a worker process works with."""


def _initialize_worker(make_compressor: MakeCompressor | None, threads: int) -> None:
    """Prepares a worker process. Models are loaded with the first task, so that errors in loading are reported."""
    global _compressor
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its workers
    torch.set_num_threads(threads)
    _compressor = None if make_compressor is None else make_compressor()


def _end_with_parent() -> None:
    """Ends this process when its parent is killed, which could not end it."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _compress(task: CompressionTask) -> CompressedBatch:
    assert _compressor is not None, "the pool has started this process"
    return _compressor.compress_new(*task)
