"""The exceptions that a caller may catch. A bad argument is a `ValueError`, a missing extra an `ImportError`."""

from collections.abc import Sequence
from typing import Any


class CompMemError(Exception):
    """Base class of the errors of this library."""


class StoreError(CompMemError):
    """The folder of an index cannot be used."""


class IncompatibleStoreError(StoreError):
    """The index was made with another encoder, backbone, ratio or format."""


class CorruptStoreError(StoreError):
    """Data of the index is damaged: for example, bytes do not match their checksum."""


class StoreLockedError(StoreError):
    """Another process is writing to the index."""


class CheckpointError(CompMemError):
    """A model is missing or incomplete, or contains something of the wrong shape."""


class WorkerError(CompMemError):
    """A worker process ended before its work was done."""


class ReaderError(CompMemError):
    """The model that reads or writes failed, or did not finish in time.

    Attributes:
        steps: The steps made before it failed, as `compmem.Step`.
    """

    def __init__(self, message: str, steps: Sequence[Any] = ()) -> None:
        super().__init__(message)
        self.steps = tuple(steps)


def chat_failure(error: Exception) -> ReaderError:
    """The error that names what a chat model raised, on one line."""
    message = " ".join(str(error).split())[:300]
    return ReaderError(f"the chat model failed: {type(error).__name__}{': ' if message else ''}{message}")
