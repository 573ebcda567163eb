"""Errors of the adapter. A bad argument is a `ValueError`, as in LangChain."""

from langchain_core.exceptions import LangChainException

from compmem import ReaderError


class ReasoningError(LangChainException, ReaderError):
    """The chat model failed, timed out or returned no text; `steps` has the earlier `compmem.Step`s.

    The model's own exception is its `__cause__`'s `__cause__`.
    """
