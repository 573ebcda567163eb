"""Errors of CompMem for users of LlamaIndex."""

from collections.abc import Iterator
from contextlib import contextmanager

from compmem import ReaderError, StoreError


class CompMemLLMError(ReaderError, ValueError):
    """The LLM failed, timed out, or returned nothing usable.

    It is a `ValueError`, as errors of the framework are. Its cause is the LLM's own exception.

    Attributes:
        steps: The steps made before it failed, as `compmem.Step`.
    """


@contextmanager
def framework_errors() -> Iterator[None]:
    """Turns errors of the core into errors that users of the framework catch.

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
