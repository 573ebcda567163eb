"""A reader combined with a separate writer, which writes the answer from the recalled blocks."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass

from compmem.schema import MemoryBlock, Reader, Reading, Request, ScoringReader, Usage, WorkingMemory, Writer


@dataclass(frozen=True, slots=True)
class ReaderWithWriter:
    """A reader whose answers another object writes."""

    reader: Reader
    writer: Writer

    @property
    def can_score(self) -> bool:
        """Whether the reader can score blocks before it reads them."""
        return isinstance(self.reader, ScoringReader) and self.reader.can_score

    def score_blocks(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> list[float] | None:
        """The reader's scores of the blocks before it reads them; None if it cannot score them."""
        return self.reader.score_blocks(question, memory, blocks) if isinstance(self.reader, ScoringReader) else None

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **second: bool) -> Reading:
        """The reader's result for the blocks."""
        return self.reader.read(question, memory, blocks, **second)

    async def aread(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **second: bool
    ) -> Reading:
        """The reader's result for the blocks."""
        return await self.reader.aread(question, memory, blocks, **second)

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The writer's answer."""
        return self.writer.write(question, memory)

    def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """The writer's answer."""
        return self.writer.awrite(question, memory)
