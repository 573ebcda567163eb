"""A reader that tells when it begins to write, for tracing."""

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from compmem import MemoryBlock, Reader, Reading, Request, ScoringReader, Usage, WorkingMemory


@dataclass(frozen=True, slots=True)
class WatchedReader:
    """A reader that forwards every call and tells when it begins to write the answer."""

    inner: Reader
    begin_writing: Callable[[], None]

    @property
    def can_score(self) -> bool:
        """Whether the inner reader can score blocks."""
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
        self.begin_writing()
        return self.inner.write(question, memory)

    def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """`write` for an event loop."""
        self.begin_writing()
        return self.inner.awrite(question, memory)
