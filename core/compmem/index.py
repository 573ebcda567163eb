"""The index: documents in, recalls and answers out. What an application holds."""

import asyncio
import dataclasses
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from rich.progress import track

from compmem.candidates import DenseSearch, FirstStage, dense_search
from compmem.chunking import split
from compmem.compressor import DenseCompressor
from compmem.config import IndexConfig, RecallConfig
from compmem.encoder import LoadedEncoder, load_encoder
from compmem.errors import IncompatibleStoreError
from compmem.gate import Digest, GateHead, digest, features
from compmem.readers import ChatReader, ExtractiveReader
from compmem.reasoner import Gathered, agathered, astream, gather, gathered, stream
from compmem.schema import Answer, Chunk, Document, Encoder, Event, MemoryBlock, Reader, Recall, Step, Vectors
from compmem.store import DocumentInfo, Snapshot, Store, StoreInfo, content_hash
from compmem.view import Viewer

Filter = Mapping[str, Any] | Sequence[Any]

BATCH_CHARACTERS = 400_000
"""Text that is compressed and committed at once while adding."""

LONGEST_QUESTION = 20_000
"""Characters of a question; a longer one is a document."""


class MemoryIndex:
    """Documents compressed into memory once, to be asked for ever.

    Made by `create` and `open`; explicit parts are the seam for tests. Any number of threads may use one index.
    """

    def __init__(
        self,
        store: Store,
        config: IndexConfig,
        *,
        encoder: LoadedEncoder | None = None,
        gate: GateHead | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self._device = device
        self._dtype = dtype
        self._encoder = encoder
        self._gate = gate
        self._checked: LoadedEncoder | None = None
        self._dense: tuple[int, DenseSearch] | None = None
        self._guard = threading.RLock()

    @classmethod
    def create(
        cls,
        path: str | Path | None = None,
        config: IndexConfig | None = None,
        *,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Self:
        """A new index in a folder; without a path, a temporary one that goes when it is closed.

        Raises:
            ValueError: The path is a file, or a folder that holds something already.
        """
        config = config or IndexConfig()
        store = Store.create(path, config=_as_json(config), dim=None, vectors=config.vectors)
        return cls(store, config, device=device, dtype=dtype)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: str | Encoder | None = None,
        device: str | None = None,
        dtype: str | None = None,
    ) -> Self:
        """The index in a folder, by this or another process.

        Args:
            path: The folder.
            encoder: Only where the index was made with an object: that object again.
            device: Torch device of the models. None: CUDA where there is one, else the CPU.
            dtype: Name of a torch dtype. None: the fastest that keeps the results.

        Raises:
            StoreError: There is no index there.
            IncompatibleStoreError: It was made in another format or with another encoder.
        """
        store = Store.open(path)
        kept = dict(store.config)
        named = str(kept["encoder"])
        if encoder is None and named.startswith(_OBJECT):
            raise IncompatibleStoreError(
                f"{str(path)!r} was made with the encoder object {named.removeprefix(_OBJECT)!r}: open it with encoder="
            )
        given = named if encoder is None else encoder
        if _encoder_name(given) != named:
            raise IncompatibleStoreError(
                f"{str(path)!r} was made with the encoder {named!r}, not with {_encoder_name(given)!r}"
            )
        return cls(store, IndexConfig(**{**kept, "encoder": given}), device=device, dtype=dtype)

    @property
    def path(self) -> Path:
        """The folder of the index."""
        return self.store.path

    @property
    def temporary(self) -> bool:
        """Whether the folder goes when the index is closed."""
        return self.store.temporary

    def close(self) -> None:
        """Gives files back; a temporary index is removed."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        with self.store.snapshot() as snapshot:
            return len(snapshot)

    def __reduce__(self) -> tuple[Callable[..., "MemoryIndex"], tuple[Any, ...]]:
        """A copy, in this process or another, is the same folder opened again."""
        encoder = None if isinstance(self.config.encoder, str) else self.config.encoder
        return _reopened, (self.path, encoder, self._gate, self._device, self._dtype)

    # Writing

    def add(self, documents: Iterable[Document], *, show_progress: bool = False) -> int:
        """Compresses documents and keeps them; returns how many were new or changed.

        Documents stream: a batch at a time is held, compressed and committed. A document that is known by id and
        content costs nothing; one that is known by id and has changed replaces the old one.

        Raises:
            ValueError: A document is empty, cannot be stored, or has the id of another in this call. Documents of
                earlier batches stay.
            StoreLockedError: Another process is writing.
        """
        if isinstance(documents, Document):
            raise ValueError("add takes documents in a list or another iterable, not one document")
        if isinstance(documents, Sequence):
            _check_ids(documents)
        incoming = track(documents, "compressing") if show_progress else documents
        seen: set[str] = set()
        written = 0
        for batch in _batches(incoming, seen):
            written += self._add_batch(batch)
        return written

    def _add_batch(self, batch: Sequence[Document]) -> int:
        encoder = self.encoder
        for document in batch:
            _check_unicode(document)
        pieces = [(d, split(d, chunk_tokens=self.config.chunk_tokens, count=encoder.count_tokens)) for d in batch]
        for document, chunks in pieces:
            if not chunks:
                raise ValueError(f"document {document.id!r} has no text: there is nothing to remember")
        known = self.store.hashes([d.id for d in batch])
        new = [(d, c) for d, c in pieces if known.get(d.id) != content_hash(d, c)]
        if not new:
            return 0
        if self.store.get_meta(_FINGERPRINT) is None:
            self.store.put_meta(_FINGERPRINT, [round(float(x), 5) for x in encoder.fingerprint()])
        blocks = iter(DenseCompressor(encoder).compress([c for _, chunks in new for c in chunks]))
        self.store.add([(d, [next(blocks) for _ in chunks]) for d, chunks in new])
        return len(new)

    def delete(self, ids: Sequence[str]) -> int:
        """Forgets documents; returns how many there were. Unknown ids are passed over."""
        if isinstance(ids, str):
            raise ValueError("delete takes a list of ids, not one id")
        return self.store.delete(list(ids))

    def compact(self) -> None:
        """Rewrites the folder without what was deleted or replaced."""
        self.store.compact()

    def copy_to(self, path: str | Path) -> None:
        """Copies the index as it is now into another folder; readers go on, a writer waits.

        Raises:
            ValueError: The path is a file, or a folder that holds something already.
            StoreLockedError: Another process is writing.
        """
        self.store.copy_to(path)

    # Looking in

    def get(self, document_id: str) -> Document | None:
        """The document of that id, whole; None where there is none."""
        with self.store.snapshot() as snapshot:
            return snapshot.document(document_id)

    def chunks(self, document_id: str) -> list[Chunk]:
        """The chunks of a document, in order; empty where there is none of that id."""
        with self.store.snapshot() as snapshot:
            return snapshot.chunks(snapshot.document_blocks(document_id))

    def documents(self, filter: Filter | None = None) -> list[DocumentInfo]:
        """The documents that a filter admits, without their texts."""
        with self.store.snapshot() as snapshot:
            return list(snapshot.documents(filter))

    def verify(self) -> list[str]:
        """Reads every checksum; the problems found, in words. Empty: all is well."""
        return self.store.verify()

    def info(self) -> StoreInfo:
        """What the index holds and what it takes on disk."""
        return self.store.info()

    # Asking

    def recall(
        self,
        question: str,
        k: int = 8,
        *,
        filter: Filter | None = None,
        config: RecallConfig | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> list[Recall]:
        """The k blocks that the question needs, best first; fewer only where the filter admits fewer.

        The loop gathers them, so a block may be here for what another one said. `RecallConfig(max_steps=1,
        reask=False)` takes one pass: candidates and gate with an empty working memory. `on_step` is told of each step
        of the loop when it is made.

        Raises:
            ValueError: The question is empty or overlong, k is below 1, or the filter is none.
        """
        config = config or RecallConfig()
        _check_k(k)
        with self.bench(question, filter, config) as bench:
            if _takes_one_pass(config):
                return bench.one_pass(k)
            loop = gather(bench, config, bench.threshold, cancelled=cancelled)
            with closing(loop):
                return bench.ranked(gathered(question, loop, self._reader(config, bench), on_step), k)

    async def arecall(
        self,
        question: str,
        k: int = 8,
        *,
        filter: Filter | None = None,
        config: RecallConfig | None = None,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> list[Recall]:
        """`recall` for an event loop, which is never blocked; cancelling it stops the work within a step."""
        config = config or RecallConfig()
        _check_k(k)
        stop = threading.Event()
        try:
            if config.reader == "extractive" or _takes_one_pass(config):
                return await asyncio.to_thread(
                    self.recall, question, k, filter=filter, config=config, cancelled=stop.is_set, on_step=on_step
                )
            bench_of = self.bench(question, filter, config)
            bench = await asyncio.to_thread(bench_of.__enter__)
            try:
                loop = gather(bench, config, bench.threshold, cancelled=stop.is_set)
                found = await agathered(question, loop, self._reader(config, bench), on_step)
                return await asyncio.to_thread(bench.ranked, found, k)
            finally:
                bench_of.__exit__(None, None, None)
        finally:
            stop.set()

    def stream(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        wrap: Callable[[Reader], Reader] = lambda reader: reader,
    ) -> Generator[Event, None, None]:
        """The answer as it comes: each step when it is made, the text in pieces, last the whole `Answer`.

        Args:
            question: What is asked.
            config: How it is answered.
            filter: Which documents may be looked at.
            cancelled: Asked before each step; true ends the loop there.
            wrap: Puts something around the reader that the settings name, such as tracing.

        Raises:
            ValueError: The question is empty or overlong, or the filter is none.
            ReaderError: The chat model failed; the error carries the steps so far.
        """
        config = config or RecallConfig()
        with self.bench(question, filter, config) as bench:
            loop = gather(bench, config, bench.threshold, cancelled=cancelled)
            with closing(loop):
                yield from stream(question, loop, wrap(self._reader(config, bench)))

    def answer(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """The answer with its sources, steps and working memory. Raises what `stream` raises."""
        *_, last = self.stream(question, config, filter=filter, cancelled=cancelled)
        assert isinstance(last, Answer)
        return last

    async def astream(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        wrap: Callable[[Reader], Reader] = lambda reader: reader,
    ) -> AsyncGenerator[Event, None]:
        """`stream` for an event loop, which is never blocked; closing or cancelling it stops the work within a step."""
        config = config or RecallConfig()
        stop = threading.Event()
        bench_of = self.bench(question, filter, config)
        bench = await asyncio.to_thread(bench_of.__enter__)
        try:
            loop = gather(bench, config, bench.threshold, cancelled=stop.is_set)
            async for event in astream(question, loop, wrap(self._reader(config, bench))):
                yield event
        finally:
            stop.set()
            bench_of.__exit__(None, None, None)

    async def aanswer(
        self, question: str, config: RecallConfig | None = None, *, filter: Filter | None = None
    ) -> Answer:
        """`answer` for an event loop."""
        last: Event | None = None
        async for event in self.astream(question, config, filter=filter):
            last = event
        assert isinstance(last, Answer)
        return last

    # Parts, loaded when they are first needed

    @property
    def encoder(self) -> LoadedEncoder:
        """The encoder, loaded once and compared with the one that made the index.

        Raises:
            IncompatibleStoreError: It gives other vectors than the one that made the index.
        """
        with self._guard:
            if self._encoder is None:
                assert self.config.encoder is not None
                self._encoder = load_encoder(self.config.encoder, device=self._device, dtype=self._dtype)
            self._check_fingerprint(self._encoder)
            return self._encoder

    @property
    def gate(self) -> GateHead:
        """The trained gate."""
        with self._guard:
            if self._gate is None:
                self._gate = GateHead.load()
            return self._gate

    def _check_fingerprint(self, encoder: LoadedEncoder) -> None:
        if self._checked is encoder:
            return
        kept = self.store.get_meta(_FINGERPRINT)
        if kept is not None:
            here = encoder.fingerprint()
            if not (isinstance(kept, list) and len(kept) == len(here) and float(np.dot(kept, here)) >= SAME_ENCODER):
                raise IncompatibleStoreError(
                    f"{str(self.path)!r} was made with other weights than the encoder {encoder.name!r} has here: "
                    "their vectors of the probe text differ"
                )
        self._checked = encoder

    def _reader(self, config: RecallConfig, bench: "QuestionBench") -> Reader:
        if config.reader == "extractive":
            return ExtractiveReader(bench.viewer)
        if config.reader == "chat":
            assert config.chat is not None
            return ChatReader(config.chat)
        reader: Reader = config.reader
        return reader

    @contextmanager
    def bench(self, question: str, filter: Filter | None, config: RecallConfig) -> Iterator["QuestionBench"]:
        """The index as one question sees it, from one snapshot: what the loop, the trainers and benchmarks work on.

        Raises:
            ValueError: The question is empty or overlong, or the filter is none.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        if len(question) > LONGEST_QUESTION:
            raise ValueError(f"the question has {len(question)} characters, more than {LONGEST_QUESTION}")
        encoder = self.encoder
        with self.store.snapshot() as snapshot:
            admitted = None if filter is None else snapshot.select(filter)
            viewer = Viewer(question, encoder, snapshot)
            stage = FirstStage(viewer, snapshot, self._search(snapshot), admitted, config.first_stage, config.links)
            yield QuestionBench(viewer, snapshot, stage, self.gate, config, encoder)

    def _search(self, snapshot: Snapshot) -> DenseSearch | None:
        with self._guard:
            if self._dense is None or self._dense[0] != snapshot.generation:
                vectors = snapshot.vectors()
                device = self._device or "cpu"
                self._dense = (snapshot.generation, dense_search(vectors, self.config.search, device))
            return self._dense[1]


SAME_ENCODER = 0.99
"""Cosine of the probe's vectors from which two encoders count as one: another device's rounding passes."""

_OBJECT = "object:"
_FINGERPRINT = "encoder fingerprint"


@dataclasses.dataclass(slots=True)
class QuestionBench:
    """The index as one question sees it: what the loop works on."""

    viewer: Viewer
    snapshot: Snapshot
    stage: FirstStage
    gate: GateHead
    config: RecallConfig
    encoder: LoadedEncoder
    _digests: dict[int, Digest] = dataclasses.field(default_factory=dict)
    _blocks: dict[int, MemoryBlock] = dataclasses.field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """Below it a block is turned down."""
        if self.config.threshold is not None:
            return self.config.threshold
        return self.gate.threshold if self.config.gate in ("learned", "question") else 0.0

    def propose(self, memory: str) -> list[int]:
        """Numbers of the blocks that may bear on the question, given the working memory."""
        if self.config.candidates == "all":
            admitted = self.stage.admitted
            return [int(n) for n in (self.snapshot.select(None) if admitted is None else admitted)]
        return self.stage.propose(memory)

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The gate score of each block, given the working memory."""
        if not blocks or self.config.gate == "off":
            return [1.0] * len(blocks)
        if self.config.gate == "similarity":
            self._load(blocks)
            asked = self.viewer.view("").question
            return [float(np.clip(self._digests[n].vectors[0] @ asked, 0.0, 1.0)) for n in blocks]
        seen = self.features("" if self.config.gate == "question" else memory, blocks)
        with torch.inference_mode():
            return [float(p) for p in self.gate.probabilities(seen)]

    def features(self, memory: str, blocks: Sequence[int]) -> Vectors:
        """What the gate sees of the blocks, `[blocks, features]`."""
        self._load(blocks)
        return features(self.viewer.view(memory), [self._digests[n] for n in blocks])

    def fetch(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        """The blocks themselves."""
        self._load(blocks)
        return [self._blocks[n] for n in blocks]

    def count_tokens(self, text: str) -> int:
        """Tokens of a text by the encoder's tokenizer."""
        return self.encoder.count_tokens([text])[0]

    def one_pass(self, k: int) -> list[Recall]:
        """Candidates and gate with an empty working memory, best first."""
        proposed = self.propose("")
        return self._recalls(dict(zip(proposed, self.score("", proposed), strict=True)), k)

    def ranked(self, found: Gathered, k: int) -> list[Recall]:
        """What the loop gathered, best first."""
        return self._recalls(found.scores, k)

    def _recalls(self, scores: dict[int, float], k: int) -> list[Recall]:
        best = sorted(scores, key=lambda n: (-scores[n], n))[:k]
        if len(best) < k:  # the caller asked for k: the nearest of the rest, below everything that was scored
            asked = self.viewer.view("").question[None]
            rest = dict.fromkeys(n for n in self.stage.nearest(asked, k + len(best)) if n not in scores)
            best += list(rest)[: k - len(best)]
        blocks = self.fetch(best)
        return [Recall(chunk=b.chunk, score=scores.get(n, 0.0), block=n) for n, b in zip(best, blocks, strict=True)]

    def _load(self, blocks: Sequence[int]) -> None:
        new = [n for n in blocks if n not in self._blocks]
        for number, block in zip(new, self.snapshot.blocks(new), strict=True):
            self._blocks[number] = block
            self._digests[number] = digest(block)


def _reopened(
    path: Path, encoder: Encoder | None, gate: GateHead | None, device: str | None, dtype: str | None
) -> MemoryIndex:
    index = MemoryIndex.open(path, encoder=encoder, device=device, dtype=dtype)
    index._gate = gate
    return index


def _batches(documents: Iterable[Document], seen: set[str]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    held = 0
    for document in documents:
        if document.id in seen:
            raise ValueError(f"document id {document.id!r} is given twice")
        seen.add(document.id)
        batch.append(document)
        held += len(document.text)
        if held >= BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _check_ids(documents: Sequence[Document]) -> None:
    seen: set[str] = set()
    for document in documents:
        if document.id in seen:
            raise ValueError(f"document id {document.id!r} is given twice")
        seen.add(document.id)


def _takes_one_pass(config: RecallConfig) -> bool:
    return config.max_steps == 1 and not config.reask


def _check_unicode(document: Document) -> None:
    try:
        (document.title + document.text).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"document {document.id!r} has a lone surrogate in its title or text: {error.reason}"
        ) from error


def _check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r} must be a whole number of at least 1")


def _encoder_name(encoder: str | Encoder | None) -> str:
    return encoder if isinstance(encoder, str) else f"{_OBJECT}{type(encoder).__name__}"


def _as_json(config: IndexConfig) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {**values, "encoder": _encoder_name(config.encoder)}
