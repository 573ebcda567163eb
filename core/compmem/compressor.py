"""Chunk to memory block: done once for each chunk, whatever is asked later."""

from collections.abc import Sequence
from dataclasses import dataclass

from compmem.encoder import LoadedEncoder
from compmem.schema import Chunk, MemoryBlock


@dataclass(frozen=True, slots=True)
class DenseCompressor:
    """Vectors of a chunk and of each of its sentences, every one read in its context."""

    encoder: LoadedEncoder

    def compress(self, chunks: Sequence[Chunk]) -> list[MemoryBlock]:
        """One block a chunk, in order."""
        texts: list[str] = []
        for chunk in chunks:
            head = f"{chunk.label}. " if chunk.label else ""
            texts += [head + chunk.text, *(head + s for s in chunk.sentence_texts())]
        vectors = self.encoder.encode(texts)
        out, at = [], 0
        for chunk in chunks:
            size = 1 + len(chunk.sentence_texts())
            out.append(MemoryBlock(chunk=chunk, vectors=vectors[at : at + size]))
            at += size
        return out
