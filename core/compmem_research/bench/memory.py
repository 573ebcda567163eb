"""The memory that a system reads, made from one question's context."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np

from compmem.backbone import Backbone
from compmem.config import IndexConfig
from compmem.encoder import LoadedEncoder, load_encoder
from compmem.gate import GateHead
from compmem.index import MemoryIndex
from compmem.ingest.chunking import split
from compmem.readers import ChatModel
from compmem.schema import Chunk, Document
from compmem_research.bench.clock import Times, none, now
from compmem_research.bench.sharing import ParagraphCache, shared
from compmem_research.bench.systems import Layout, SystemRun
from compmem_research.tasks.sample import Sample

PASSAGE, CHUNK = 256, 4096
"""Most tokens of a block in the two layouts."""

SAMPLED = 12
"""Timed steps of a scan that would take too long as a whole."""


@dataclass(frozen=True, slots=True)
class Models:
    """The models of the systems, loaded once."""

    chat: ChatModel | None = None
    backbone: Backbone | None = None
    backbone_name: str = ""
    plain: LoadedEncoder = field(default_factory=lambda: load_encoder(IndexConfig().encoder or ""))
    gate: GateHead = field(default_factory=GateHead.load)
    _shared: list[tuple[LoadedEncoder, ParagraphCache]] = field(default_factory=list)

    @property
    def encoder(self) -> LoadedEncoder:
        """The encoder, which reads each paragraph once."""
        return self._pair()[0]

    @property
    def account(self) -> ParagraphCache:
        """Time of reading, and its time without sharing."""
        return self._pair()[1]

    def _pair(self) -> tuple[LoadedEncoder, ParagraphCache]:
        if not self._shared:
            self._shared.append(shared(self.plain))
        return self._shared[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """An index over a sample's context, or over a part of it."""

    index: MemoryIndex
    gold: frozenset[int]
    """Numbers of the blocks that contain evidence."""
    gold_in_all: int
    """Blocks of the whole context that contain evidence."""
    times: Times
    """Time of making it, counting the encoder's work as if it was not shared."""
    cutting: Times
    """Time of splitting the whole context, if only a part of it became memory."""
    share: float
    """The share of the context's blocks in it."""

    @property
    def disk_bytes(self) -> int:
        """Its size on disk."""
        info = self.index.info()
        return info.vector_bytes + info.kv_bytes + info.text_bytes

    def reopened(self, models: Models) -> MemoryIndex:
        """The same folder opened by an index without caches."""
        return MemoryIndex(self.index.store, self.index.config, encoder=models.encoder, gate=models.gate)


class Memories:
    """The memories of one sample, made on first use and removed at the end."""

    def __init__(self, sample: Sample, models: Models, *, scan_until: int) -> None:
        self.sample = sample
        self._models = models
        self._scan_until = scan_until
        self._made: dict[tuple[Layout, bool, str], Memory] = {}
        self._split: dict[bool, tuple[list[Chunk], Times]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for memory in self._made.values():
            memory.index.close()

    def get(self, system_run: SystemRun) -> Memory:
        """The memory that a system reads."""
        system, latent = system_run.system, system_run.reader == "latent"
        layout: Layout = "chunks" if latent and not system.direct else system.layout
        part = ""
        if system.most_tokens is not None and self.sample.tokens > system.most_tokens:
            part = "ends"
        elif system.scans and self.sample.tokens > self._scan_until:
            part = "sampled"
        if (layout, latent, part) not in self._made:
            self._made[layout, latent, part] = self._make(layout, latent, part, system.most_tokens)
        return self._made[layout, latent, part]

    def _make(self, layout: Layout, latent: bool, part: str, most: int | None) -> Memory:
        account = self._models.account
        began, spent, charged = now(), account.spent, account.charged
        index = self._index(layout, latent)
        sample = self.sample if layout == "passages" else self.sample.joined()
        documents = sample.documents
        gold_in_all, share, supports, cutting = None, 1.0, sample.supports, none()
        if part:
            started = now()
            chunks, cutting = self._chunks(documents[0], latent)
            began = began + (now() - started)  # counted separately: it does not depend on the part
            kept = _ends(chunks, most or 0) if part == "ends" else _spread(chunks)
            gold_in_all = sum(map(sample.supports, chunks))
            share = len(kept) / len(chunks)
            documents = (Document(id=documents[0].id, chunks=kept),)
            original = dict(enumerate(kept))
            supports = lambda chunk: sample.supports(original[chunk.ordinal])  # noqa: E731
        index.add(documents)
        times = now() - began - (account.spent - spent) + (account.charged - charged)
        gold = _gold(index, documents if layout == "chunks" else _holding(sample), supports)
        return Memory(
            index=index, gold=gold, gold_in_all=len(gold) if gold_in_all is None else gold_in_all,
            times=times, cutting=cutting, share=share,
        )  # fmt: skip

    def _index(self, layout: Layout, latent: bool) -> MemoryIndex:
        models = self._models
        tokens = CHUNK if layout == "chunks" else PASSAGE
        config = IndexConfig(chunk_tokens=tokens)
        if latent:
            assert models.backbone is not None, "a latent system needs a backbone"
            ratio = models.backbone.memory.ratio
            config = IndexConfig(memory="kv", backbone=models.backbone_name, chunk_tokens=tokens, ratio=ratio)
        store = MemoryIndex.create(None, config).store
        backbone = models.backbone if latent else None
        return MemoryIndex(store, config, encoder=models.encoder, backbone=backbone, gate=models.gate)

    def _chunks(self, document: Document, latent: bool) -> tuple[list[Chunk], Times]:
        """The chunks of the whole context, split once, and the time for it."""
        known = self._split.get(latent)
        if known is not None:
            return known
        began = now()
        chunks = list(split(document, chunk_tokens=CHUNK, count=self._counter(latent)))
        self._split[latent] = chunks, now() - began
        return self._split[latent]

    def _counter(self, latent: bool) -> Callable[[Sequence[str]], list[int]]:
        backbone = self._models.backbone
        if not latent or backbone is None:
            return self._models.encoder.count_tokens
        return lambda texts: [len(backbone.encode(text)) for text in texts]


def _ends(chunks: Sequence[Chunk], tokens: int) -> list[Chunk]:
    """The chunks at both ends, which a truncated context keeps."""
    side = max(1, tokens // CHUNK // 2)
    return list(chunks) if len(chunks) <= 2 * side else [*chunks[:side], *chunks[-side:]]


def _spread(chunks: Sequence[Chunk]) -> list[Chunk]:
    """`SAMPLED` chunks, at equal distances."""
    if len(chunks) <= SAMPLED:
        return list(chunks)
    return [chunks[int(i)] for i in np.linspace(0, len(chunks) - 1, SAMPLED)]


def _holding(sample: Sample) -> list[Document]:
    named = {span.document for span in sample.evidence}
    return [d for d in sample.documents if d.id in named]


def _gold(index: MemoryIndex, documents: Sequence[Document], supports: Callable[[Chunk], bool]) -> frozenset[int]:
    with index.store.snapshot() as snapshot:
        numbers = [n for d in documents for n in snapshot.document_blocks(d.id)]
        chunks = snapshot.chunks(numbers)
        return frozenset(n for n, chunk in zip(numbers, chunks, strict=True) if supports(chunk))
