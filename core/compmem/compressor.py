"""Chunk to memory block: done once for each chunk, whatever is asked later."""

from collections.abc import Sequence
from dataclasses import dataclass

from compmem.encoder import LoadedEncoder
from compmem.parts import Parts
from compmem.schema import Chunk, MemoryBlock


@dataclass(frozen=True, slots=True)
class DenseCompressor:
    """Vectors of a chunk and of each of its sentences, every one read in its context."""

    encoder: LoadedEncoder

    def compress(self, chunks: Sequence[Chunk]) -> list[MemoryBlock]:
        """One block a chunk, in order."""
        parts = [Parts(c.label, c.text, c.sentences or ((0, len(c.text)),)) for c in chunks]
        vectors = self.encoder.encode_parts(parts)
        return [MemoryBlock(chunk=c, vectors=v) for c, v in zip(chunks, vectors, strict=True)]
