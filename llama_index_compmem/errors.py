"""Errors of CompMem as the framework's users know them."""

from collections.abc import Iterator
from contextlib import contextmanager

from compmem import ReaderError, StoreError


class CompMemLLMError(ReaderError, ValueError):
    """The LLM failed, timed out, or gave nothing that could be used.

    A `ValueError`, as errors of the framework are. Its cause is what the LLM raised.

    Attributes:
        steps: The steps made before it failed, as `compmem.Step`.
    """


@contextmanager
def framework_errors() -> Iterator[None]:
    """Turns errors of the core into errors that the framework's users catch.

    Raises:
        CompMemLLMError: The LLM failed.
        ValueError: The index cannot be used.
    """
    try:
        yield
    except CompMemLLMError:
        raise
    except ReaderError as error:
        raise CompMemLLMError(str(error), error.steps) from (error.__cause__ or error)
    except StoreError as error:
        raise ValueError(str(error)) from error
