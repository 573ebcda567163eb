"""The index: documents in, recalls and answers out. What an application holds."""

import dataclasses
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, get_args

from compmem.adding import Adding
from compmem.backbone import Backbone
from compmem.candidates import DenseSearch, FirstStage, dense_search
from compmem.config import IndexConfig, RecallConfig, SearchMethod
from compmem.drivers import INLINE, THREADED, Runner, events, gathered, iterate, run
from compmem.encoder import LoadedEncoder
from compmem.errors import CorruptStoreError, IncompatibleStoreError
from compmem.gate import GateHead
from compmem.locks import Lock
from compmem.models import Models
from compmem.naming import absolute
from compmem.question import QuestionBench, Seen
from compmem.readers import ExtractiveReader
from compmem.reasoner import Loop
from compmem.resident import RESIDENT_BYTES, check_budget
from compmem.roles import loop_of, reader_of, suited
from compmem.schema import Answer, Chunk, Document, Encoder, Event, Reader, Recall, Step
from compmem.store import DocumentInfo, Snapshot, Store, StoreInfo
from compmem.threads import in_thread
from compmem.valid import valid
from compmem.view import Viewer

Filter = Mapping[str, Any] | Sequence[Any]

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
        backbone: Backbone | None = None,
        gate: GateHead | None = None,
        device: str | None = None,
        dtype: str | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        fetch_encoder: bool = True,
        fetch_backbone: bool | None = None,
    ) -> None:
        self.store = store
        self.config = config
        self._models = Models(
            store, config, encoder=encoder, backbone=backbone, gate=gate, device=device, dtype=dtype,
            resident_bytes=resident_bytes, fetch_encoder=fetch_encoder, fetch_backbone=fetch_backbone,
        )  # fmt: skip
        self._seen = Seen()
        self._dense: tuple[int, DenseSearch] | None = None
        self._guard = Lock()

    @classmethod
    def create(
        cls,
        path: str | Path | None = None,
        config: IndexConfig | None = None,
        *,
        backbone: Backbone | None = None,
        device: str | None = None,
        dtype: str | None = None,
        resident_bytes: int = RESIDENT_BYTES,
    ) -> Self:
        """A new index in a folder; without a path, a temporary one that goes when it is closed.

        Args:
            path: The folder.
            config: How documents become memory.
            backbone: For KV memory, one that is loaded already; the settings' name is kept as its name.
            device: Torch device of the models. None: CUDA where there is one, else the CPU.
            dtype: Name of a torch dtype. None: the fastest that keeps the results.
            resident_bytes: KV blocks kept on the device between questions, in bytes.

        Raises:
            ValueError: The path is a file, or a folder that holds something already.
        """
        config = _with_absolute_folders(config or IndexConfig())
        check_budget(resident_bytes)
        store = Store.create(path, config=_as_json(config), dim=None, vectors=config.vectors)
        return cls(store, config, backbone=backbone, device=device, dtype=dtype, resident_bytes=resident_bytes)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: str | Encoder | None = None,
        backbone: str | Backbone | None = None,
        device: str | None = None,
        dtype: str | None = None,
        resident_bytes: int = RESIDENT_BYTES,
        allow_download: bool = False,
    ) -> Self:
        """The index in a folder, by this or another process.

        Args:
            path: The folder.
            encoder: Where the index was made with an object: that object again. The name of an encoder that may be
                fetched or that is a relative folder.
            backbone: Only where the backbone lies elsewhere now, or is loaded already: its folder, or itself. Its
                weights are compared when they are loaded.
            device: Torch device of the models. None: CUDA where there is one, else the CPU.
            dtype: Name of a torch dtype. None: the fastest that keeps the results.
            resident_bytes: KV blocks kept on the device between questions, in bytes.
            allow_download: Models that the index names may be fetched from the hub. Otherwise they are used from this
                machine only: an absolute folder, the hub's cache, or what ships with packages.

        Raises:
            StoreError: There is no index there.
            IncompatibleStoreError: It was made in another format, with another encoder or another backbone.
        """
        check_budget(resident_bytes)
        store = Store.open(path)
        kept = _kept_settings(store)
        named = kept["encoder"]
        if encoder is None and str(named).startswith(_OBJECT):
            raise IncompatibleStoreError(
                f"{str(path)!r} was made with the encoder object {named.removeprefix(_OBJECT)!r}: open it with encoder="
            )
        given = named if encoder is None else encoder
        if named not in (_encoder_name(given), absolute(_encoder_name(given))):
            raise IncompatibleStoreError(
                f"{str(path)!r} was made with the encoder {named!r}, not with {_encoder_name(given)!r}"
            )
        if isinstance(backbone, str):
            kept["backbone"] = backbone
        config = IndexConfig(**{**kept, "encoder": given})
        by_name = None if isinstance(backbone, str) else False
        loaded = None if isinstance(backbone, str) else backbone
        index = cls(
            store, config, backbone=loaded, device=device, dtype=dtype, resident_bytes=resident_bytes,
            fetch_encoder=allow_download or encoder is not None, fetch_backbone=allow_download or by_name,
        )  # fmt: skip
        if loaded is not None:
            index._models.check_backbone(loaded)
        return index

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
        models = self._models
        settings = {"device": models.device, "dtype": models.dtype, "resident_bytes": models.resident_bytes}
        return _reopened, (self.path, encoder, models.given_gate, settings)

    # Writing

    def add(self, documents: Iterable[Document], *, show_progress: bool = False) -> int:
        """Compresses documents and keeps them; returns how many were new or changed.

        Documents stream: a batch at a time is held, compressed and committed. A document that is known by id and
        content costs nothing; one that is known by id and has changed replaces the old one.

        Raises:
            ValueError: A document is empty, cannot be stored, or has the id of another in this call. Documents of
                earlier batches stay.
            TypeError: Something is no document.
            StoreLockedError: Another process is writing.
        """
        models = self._models
        adding = Adding(self.store, self.config.chunk_tokens, count=models.count_tokens, compress=models.compress)
        return adding.add(documents, show_progress=show_progress)

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
        min_score: float = 0.0,
        filter: Filter | None = None,
        config: RecallConfig | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> list[Recall]:
        """The k blocks that the question needs, best first; fewer where fewer bear on it.

        The loop gathers them, so a block may be here for what another one said. A block's score is the probability that
        the gate gave it in its last look, and a later look sees what the first one said of each block. Where the first
        look suffices, by the gate's own judgement, it is the only one, and nothing is read. `search` always takes one
        pass.

        Args:
            question: What is asked.
            k: Most blocks.
            min_score: Blocks with a lower score are left out.
            filter: Which documents may be looked at.
            config: How the loop goes.
            cancelled: Asked before each step; true ends the loop there.
            on_step: Called with each step of the loop when it is made.

        Raises:
            ValueError: The question is empty or overlong, k is below 1, or the filter is none.
        """
        return run(self._recalled(INLINE, question, k, min_score, filter, config, cancelled, on_step))

    async def arecall(
        self,
        question: str,
        k: int = 8,
        *,
        min_score: float = 0.0,
        filter: Filter | None = None,
        config: RecallConfig | None = None,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> list[Recall]:
        """`recall` for an event loop, which is never blocked; cancelling it stops the work within a step."""
        settings, stop = config or RecallConfig(), threading.Event()
        try:
            if settings.parts(self.config)[0] in ("extractive", "latent") or _takes_one_pass(settings):
                work = partial(
                    self.recall, min_score=min_score, filter=filter, config=config,
                    cancelled=stop.is_set, on_step=on_step,
                )  # fmt: skip
                return await in_thread(work, question, k)
            return await self._recalled(THREADED, question, k, min_score, filter, config, stop.is_set, on_step)
        finally:
            stop.set()

    async def _recalled(
        self,
        runner: Runner,
        question: str,
        k: int,
        min_score: float,
        filter: Filter | None,
        config: RecallConfig | None,
        cancelled: Callable[[], bool],
        on_step: Callable[[Step], None],
    ) -> list[Recall]:
        question, config = valid(question), config or RecallConfig()
        _check_k(k)
        async with runner.entered(self.bench(question, filter, config)) as bench:
            if _takes_one_pass(config):
                return bench.best(await runner.call(bench.search, "gate", k), k, min_score)
            reader = self.reader(bench.config, bench, writes=False)
            loop = loop_of(bench, bench.config, bench.threshold, reader, writes=False, cancelled=cancelled)
            found = await gathered(question, loop, reader, runner, seconds=config.max_seconds, on_step=on_step)
            return await runner.call(bench.best, found.scores, k, min_score)

    def search(
        self,
        question: str,
        k: int = 8,
        *,
        method: SearchMethod = "gate",
        min_score: float = 0.0,
        filter: Filter | None = None,
    ) -> list[Recall]:
        """The k best blocks by one pass, without the loop, best first.

        Args:
            question: What is asked.
            k: Most blocks.
            method: `"gate"`: the gate scores what vectors, BM25 and links propose; the score is a probability.
                `"hybrid"`: vectors and BM25 fused by reciprocal ranks; 1 where both put a block first. `"dense"`:
                cosine of the vectors. `"bm25"`: BM25 as a share of the best score.
            min_score: Blocks with a lower score are left out.
            filter: Which documents may be looked at.

        Raises:
            ValueError: The question is empty or overlong, k is below 1, the filter or the method is none, or the index
                was made without an encoder and the method is not `"gate"`.
        """
        _check_k(k)
        if method not in get_args(SearchMethod):
            raise ValueError(f"method={method!r} must be one of {', '.join(map(repr, get_args(SearchMethod)))}")
        with self.bench(question, filter, RecallConfig()) as bench:
            return bench.best(bench.search(method, k), k, min_score)

    async def asearch(
        self,
        question: str,
        k: int = 8,
        *,
        method: SearchMethod = "gate",
        min_score: float = 0.0,
        filter: Filter | None = None,
    ) -> list[Recall]:
        """`search` for an event loop, which is never blocked."""
        work = partial(self.search, method=method, min_score=min_score, filter=filter)
        return await in_thread(work, question, k)

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
        yield from iterate(self._events(INLINE, question, config, filter, cancelled, wrap))

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
        stop = threading.Event()
        try:
            async with aclosing(self._events(THREADED, question, config, filter, stop.is_set, wrap)) as made:
                async for event in made:
                    yield event
        finally:
            stop.set()

    async def _events(
        self,
        runner: Runner,
        question: str,
        config: RecallConfig | None,
        filter: Filter | None,
        cancelled: Callable[[], bool],
        wrap: Callable[[Reader], Reader],
    ) -> AsyncGenerator[Event, None]:
        question = valid(question)
        async with runner.entered(self.bench(question, filter, config or RecallConfig())) as bench:
            config = bench.config
            reader = self.reader(config, bench)
            loop = loop_of(bench, config, bench.threshold, reader, cancelled=cancelled)
            quoter = None if bench.dense is None else ExtractiveReader(bench.viewer)

            @asynccontextmanager
            async def again(request: str, seconds: float | None) -> AsyncIterator[tuple[Loop, Reader]]:
                asked = f"{question}\n{request}"[:LONGEST_QUESTION]
                settings = config.but(max_seconds=seconds)
                async with runner.entered(self.bench(asked, filter, settings)) as more:
                    other = self.reader(settings, more)
                    yield loop_of(more, settings, more.threshold, other, cancelled=cancelled), wrap(other)

            made = events(
                question, loop, wrap(reader), runner,
                seconds=config.max_seconds, quoter=quoter, rounds=config.rounds, again=again,
            )  # fmt: skip
            async with aclosing(made):
                async for event in made:
                    yield event

    async def aanswer(
        self, question: str, config: RecallConfig | None = None, *, filter: Filter | None = None
    ) -> Answer:
        """`answer` for an event loop."""
        async with aclosing(self.astream(question, config, filter=filter)) as made:
            *_, last = [event async for event in made]
        assert isinstance(last, Answer)
        return last

    # Parts, loaded when they are first needed

    @property
    def encoder(self) -> LoadedEncoder:
        """The encoder, loaded once and compared with the one that made the index.

        Raises:
            ValueError: The index was made without one.
            IncompatibleStoreError: It gives other vectors than the one that made the index.
        """
        return self._models.encoder

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded once and compared with the one that made the index.

        Raises:
            ValueError: The index holds dense memory, or the device is not there.
            CheckpointError: It cannot be loaded.
            IncompatibleStoreError: It has other weights than the one that made the index.
        """
        return self._models.backbone

    @property
    def gate(self) -> GateHead:
        """The trained dense gate."""
        return self._models.gate

    def reader(self, config: RecallConfig, bench: QuestionBench, *, writes: bool = True) -> Reader:
        """What reads and, where an answer is written, writes for one question, as the settings name it.

        Raises:
            ValueError: The backbone is asked for, and the index holds dense memory; or the chat model, and there is
                none.
        """
        return reader_of(config, self.config, self._models, bench, writes=writes)

    @contextmanager
    def bench(self, question: str, filter: Filter | None, config: RecallConfig) -> Iterator[QuestionBench]:
        """The index as one question sees it, from one snapshot: what the loop, the trainers and benchmarks work on.

        Its settings are those given, and what suits the index where they name neither reader nor writer.

        Raises:
            ValueError: The question is empty or overlong, or the filter is none.
        """
        question = valid(question)
        if not question.strip():
            raise ValueError("the question is empty")
        if len(question) > LONGEST_QUESTION:
            raise ValueError(f"the question has {len(question)} characters, more than {LONGEST_QUESTION}")
        encoder = None if self.config.encoder is None else self.encoder
        latent = self._models.latent_gate(question)
        config = suited(config, self.config, self._models)
        with self.store.snapshot() as snapshot:
            admitted = None if filter is None else snapshot.select(filter)
            stage = None
            if encoder is not None:
                words = snapshot if admitted is None else snapshot.within(admitted)
                viewer = Viewer(question, encoder, words)
                stage = FirstStage(viewer, words, self._search(snapshot), admitted, config.first_stage, config.links)
            yield QuestionBench(
                snapshot=snapshot,
                config=config,
                admitted=admitted,
                count=self._models.count_tokens,
                dense=stage,
                gate=None if encoder is None or latent else self.gate,
                latent=latent,
                resident=self._models.resident,
                seen=self._seen,
            )

    def _search(self, snapshot: Snapshot) -> DenseSearch | None:
        with self._guard:
            if self._dense is None or self._dense[0] != snapshot.generation:
                vectors = snapshot.vectors()
                device = self._models.device or "cpu"
                self._dense = (snapshot.generation, dense_search(vectors, self.config.search, device))
            return self._dense[1]


_OBJECT = "object:"


def _kept_settings(store: Store) -> dict[str, Any]:
    """The settings that an index was made with.

    Raises:
        CorruptStoreError: They are not those of an index.
    """
    kept = dict(store.config)
    try:
        for name in ("encoder", "backbone"):
            if not isinstance(kept[name], str | None):
                raise ValueError(f"{name}={kept[name]!r} is not a name")
        IndexConfig(**kept)
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptStoreError(f"the settings of the index {str(store.path)!r} cannot be used: {error}") from error
    return kept


def _reopened(path: Path, encoder: Encoder | None, gate: GateHead | None, settings: Mapping[str, Any]) -> MemoryIndex:
    index = MemoryIndex.open(path, encoder=encoder, **settings)
    index._models.use_gate(gate)
    return index


def _takes_one_pass(config: RecallConfig) -> bool:
    return config.max_steps == 1 and not config.reask


def _check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r} must be a whole number of at least 1")


def _with_absolute_folders(config: IndexConfig) -> IndexConfig:
    """The settings with folders that mean the same from every working folder."""
    encoder = absolute(config.encoder) if isinstance(config.encoder, str) else config.encoder
    return dataclasses.replace(config, encoder=encoder, backbone=absolute(config.backbone))


def _encoder_name(encoder: str | Encoder | None) -> str | None:
    return encoder if encoder is None or isinstance(encoder, str) else f"{_OBJECT}{type(encoder).__name__}"


def _as_json(config: IndexConfig) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {**values, "encoder": _encoder_name(config.encoder)}
