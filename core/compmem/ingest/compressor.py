"""Chunk to memory block: done once for each chunk, whatever is asked later."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from compmem.backbone import Backbone, chunk_ids
from compmem.encoder import LoadedEncoder, Parts
from compmem.schema import Chunk, MemoryBlock

AT_ONCE = 64
"""Chunks whose KV states are on the device at once."""


@dataclass(frozen=True, slots=True)
class DenseCompressor:
    """Vectors of a chunk and of each of its sentences, every one read in its context."""

    encoder: LoadedEncoder

    def compress(self, chunks: Sequence[Chunk]) -> list[MemoryBlock]:
        """One block a chunk, in order."""
        parts = [Parts(c.head, c.text, c.sentences or ((0, len(c.text)),)) for c in chunks]
        vectors = self.encoder.encode_parts(parts)
        return [MemoryBlock(chunk=c, vectors=v) for c, v in zip(chunks, vectors, strict=True)]


@dataclass(frozen=True, slots=True)
class KVCompressor:
    """KV states of a chunk's memory tokens, and its vectors too where there is an encoder."""

    backbone: Backbone
    ratio: int
    dense: DenseCompressor | None

    def compress(self, chunks: Sequence[Chunk]) -> list[MemoryBlock]:
        """One block a chunk, in order, its KV states off the device.

        Raises:
            ValueError: A chunk is larger than the backbone's context.
            MemoryError: One chunk alone does not fit on the device.
        """
        bare = self.dense.compress(chunks) if self.dense else [MemoryBlock(chunk=c) for c in chunks]
        blocks: list[MemoryBlock] = []
        for at in range(0, len(bare), AT_ONCE):
            group = bare[at : at + AT_ONCE]
            states = self.backbone.compress([chunk_ids(self.backbone, b.chunk) for b in group], ratio=self.ratio)
            blocks += [
                replace(b, kv=replace(s, keys=s.keys.cpu(), values=s.values.cpu(), positions=_cpu(s.positions)))
                for b, s in zip(group, states, strict=True)
            ]
        return blocks


def _cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()
