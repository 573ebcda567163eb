"""A reader that tells when it begins to write, for tracing."""

from collections.abc import AsyncIterator, Callable, Iterator

from compmem import Reader, ReaderProxy, Request, Usage, WorkingMemory


class WatchedReader(ReaderProxy):
    """A reader that tells when it begins to write the answer.

    Args:
        inner: The reader.
        begin_writing: Called then.
    """

    def __init__(self, inner: Reader, begin_writing: Callable[[], None]) -> None:
        super().__init__(inner)
        self.begin_writing = begin_writing

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The answer of the inner reader."""
        self.begin_writing()
        return super().write(question, memory)

    def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """`write` for an event loop."""
        self.begin_writing()
        return super().awrite(question, memory)
