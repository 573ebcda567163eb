"""A reader that forwards to another one, for readers that change one thing about it."""

from collections.abc import AsyncIterator, Iterator, Sequence

from compmem.schema import MemoryBlock, Reader, Reading, Request, ScoringReader, Usage, WorkingMemory


class ReaderProxy:
    """A reader that forwards every call to another one; subclasses override what they change.

    Args:
        inner: The reader.
    """

    def __init__(self, inner: Reader) -> None:
        self.inner = inner

    @property
    def can_score(self) -> bool:
        """Whether the inner reader can score blocks before it reads them."""
        return isinstance(self.inner, ScoringReader) and self.inner.can_score

    def score_blocks(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> list[float] | None:
        """The inner reader's scores of the blocks before it reads them; None if it cannot score them."""
        return self.inner.score_blocks(question, memory, blocks) if isinstance(self.inner, ScoringReader) else None

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **options: bool) -> Reading:
        """The inner reader's result for the blocks."""
        return self.inner.read(question, memory, blocks, **options)

    async def aread(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **options: bool
    ) -> Reading:
        """`read` for an event loop."""
        return await self.inner.aread(question, memory, blocks, **options)

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The answer of the inner reader."""
        return self.inner.write(question, memory)

    def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """`write` for an event loop."""
        return self.inner.awrite(question, memory)
