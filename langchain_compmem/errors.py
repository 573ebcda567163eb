"""What the adapter raises on its own. A bad argument is a `ValueError`, as in LangChain itself."""

from langchain_core.exceptions import LangChainException

from compmem import ReaderError


class ReasoningError(LangChainException, ReaderError):
    """The chat model failed, timed out or gave no text; `steps` holds the `compmem.Step`s made before.

    What the model raised is its `__cause__`'s `__cause__`.
    """
