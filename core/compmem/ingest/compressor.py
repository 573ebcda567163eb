"""Compresses chunks to memory blocks, once for each chunk, independent of later questions."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from torch import Tensor

from compmem.backbone import Backbone, chunk_ids, window_sizes
from compmem.config import KVPruning
from compmem.encoder import LoadedEncoder, TextWithSpans
from compmem.ingest.chunking import split
from compmem.schema import Chunk, Document, KVStates, MemoryBlock
from compmem.store import JSON, check_document, content_hash

MAX_CHUNKS_ON_DEVICE = 64
"""Maximum number of chunks whose KV states are on the device together; a larger window is not split."""


@dataclass(frozen=True, slots=True)
class DenseCompressor:
    """Vectors of a chunk and of each of its sentences, encoded in context."""

    encoder: LoadedEncoder

    def compress(self, chunks: Sequence[Chunk]) -> list[MemoryBlock]:
        """One block per chunk, in order."""
        texts = [TextWithSpans(c.head, c.text, c.spans) for c in chunks]
        vectors = self.encoder.encode_with_spans(texts)
        return [MemoryBlock(chunk=c, vectors=v) for c, v in zip(chunks, vectors, strict=True)]


@dataclass(frozen=True, slots=True)
class KVCompressor:
    """KV states of a chunk's memory tokens, and its vectors if there is an encoder."""

    backbone: Backbone
    ratio: int
    dense: DenseCompressor | None
    pruning: KVPruning | None = None
    window: int = 0
    """Maximum number of tokens of a document that are read in one pass; see `IndexConfig.kv_window`."""

    def compress(self, chunks: Sequence[Chunk]) -> list[MemoryBlock]:
        """One block per chunk, in order, with KV states moved off the device.

        Raises:
            ValueError: A chunk is longer than the backbone's context.
            MemoryError: A single window does not fit on the device.
        """
        blocks = self.dense.compress(chunks) if self.dense else [MemoryBlock(chunk=c) for c in chunks]
        ids = [chunk_ids(self.backbone, chunk) for chunk in chunks]
        most = min(self.window, self.backbone.max_window_tokens(ratio=self.ratio, pruning=self.pruning))
        windows = list(window_sizes([chunk.source for chunk in chunks], list(map(len, ids)), most))
        rest, states = iter(windows), list[KVStates]()
        for count in window_sizes([""] * len(windows), windows, MAX_CHUNKS_ON_DEVICE):
            group = list(islice(rest, count))
            group_ids = ids[len(states) : len(states) + sum(group)]
            made = self.backbone.compress(group_ids, ratio=self.ratio, pruning=self.pruning, windows=group)
            states += [replace(s, keys=s.keys.cpu(), values=s.values.cpu(), positions=_cpu(s.positions)) for s in made]
        return [replace(block, kv=kv) for block, kv in zip(blocks, states, strict=True)]


def _cpu(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.cpu()


@dataclass(frozen=True, slots=True)
class CompressedBatch:
    """Documents that are new or changed, with their blocks."""

    entries: list[tuple[Document, list[MemoryBlock]]] = field(default_factory=list)
    provenance: Mapping[str, JSON] = field(default_factory=dict)
    """Which models made the blocks."""


@dataclass(frozen=True, slots=True)
class DocumentCompressor:
    """What turns documents into blocks. It knows no store, so it works in any process."""

    chunk_tokens: int
    """Maximum number of tokens of a chunk."""
    count: Callable[[Sequence[str]], list[int]]
    """Tokens of texts."""
    compress: Callable[[Sequence[Chunk]], list[MemoryBlock]]
    """The blocks of chunks, in order."""
    provenance: Callable[[Sequence[Chunk]], dict[str, JSON]]
    """Which models make the blocks of chunks."""

    def compress_new(self, documents: Sequence[Document], known: Mapping[str, str]) -> CompressedBatch:
        """The documents that are new or changed, with their blocks.

        Args:
            documents: Documents with ids of their own.
            known: The content hash of each one of them that the store holds.

        Raises:
            ValueError: A document is empty or cannot be stored.
        """
        pieces = [(d, list(self.chunks(d))) for d in documents]
        new = [(d, c) for d, c in pieces if known.get(d.id) != content_hash(d, c)]
        chunks = [chunk for _, own in new for chunk in own]
        if not chunks:
            return CompressedBatch()
        blocks = iter(self.compress(chunks))
        return CompressedBatch([(d, [next(blocks) for _ in own]) for d, own in new], self.provenance(chunks))

    def chunks(self, document: Document) -> Iterator[Chunk]:
        """The chunks of a document, in order.

        Raises:
            ValueError: The document is empty or cannot be encoded as UTF-8.
        """
        check_document(document)
        return split(document, chunk_tokens=self.chunk_tokens, count=self.count)
