"""A reader combined with a separate writer, which writes the answer from the recalled blocks."""

from collections.abc import AsyncIterator, Iterator

from compmem.reader_proxy import ReaderProxy
from compmem.schema import Reader, Request, Usage, WorkingMemory, Writer


class ReaderWithWriter(ReaderProxy):
    """A reader whose answers another object writes.

    Args:
        reader: Reads and scores the blocks.
        writer: Writes the answers.
    """

    def __init__(self, reader: Reader, writer: Writer) -> None:
        super().__init__(reader)
        self.writer = writer

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The writer's answer."""
        return self.writer.write(question, memory)

    def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """The writer's answer."""
        return self.writer.awrite(question, memory)
