"""The index: documents in, recalls and answers out. What an application holds."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compmem.backbone import Backbone, device_of
from compmem.base_index import BaseIndex, Filter, checked_question
from compmem.config import IndexConfig, LoopConfig, RecallConfig, RuntimeConfig
from compmem.encoder import LoadedEncoder
from compmem.errors import CorruptStoreError, IncompatibleStoreError
from compmem.gate import GateHead
from compmem.index_models import IndexModels
from compmem.ingest.chunking import split
from compmem.ingest.pipeline import IngestPipeline
from compmem.locks import Lock
from compmem.loop.blocks import BlockCache, BlockLoader
from compmem.loop.context import QuestionContext
from compmem.loop.gates import DenseGate, Gate, KVGate, NoGate, make_gate
from compmem.naming import absolute
from compmem.retrieval.candidates import FirstStage
from compmem.retrieval.query import QueryAnalyzer
from compmem.retrieval.vector_search import DenseSearch, ShardedSearch, dense_search
from compmem.schema import Chunk, Document, Encoder
from compmem.store import DocumentInfo, ShardedSnapshot, ShardedStore, Snapshot, Store, StoreInfo, open_store


class MemoryIndex(BaseIndex):
    """Documents compressed into memory on disk, and questions to them.

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
        runtime: RuntimeConfig | None = None,
        fetch_encoder: bool = True,
        fetch_backbone: bool | None = None,
    ) -> None:
        self.store = store
        models = IndexModels(
            store, config, encoder=encoder, backbone=backbone, gate=gate, runtime=runtime or RuntimeConfig(),
            fetch_encoder=fetch_encoder, fetch_backbone=fetch_backbone,
        )  # fmt: skip
        super().__init__(config, models)
        self._seen = BlockCache()
        self._dense: tuple[int, DenseSearch] | None = None
        self._guard = Lock()

    @classmethod
    def create(
        cls,
        path: str | Path | None = None,
        config: IndexConfig | None = None,
        *,
        backbone: Backbone | None = None,
        runtime: RuntimeConfig | None = None,
        shards: int | None = None,
    ) -> Self:
        """A new index in a folder; without a path, a temporary one that goes when it is closed.

        Args:
            path: The folder.
            config: How documents become memory.
            backbone: For KV memory, one that is loaded already; the settings' name is kept as its name.
            runtime: Device, types and search of this process.
            shards: Into how many folders the documents are divided, by a hash of their ids. None: one, undivided.

        Raises:
            ValueError: The path is a file, or a folder that holds something already; or the shards are too many, or
                have no path.
        """
        config = _with_absolute_folders(config or IndexConfig())
        if shards is not None:
            if path is None:
                raise ValueError("shards need a path")
            sharded = ShardedStore.create_shards(path, shards, config=_as_json(config), vectors=config.vectors)
            return cls(sharded, config, backbone=backbone, runtime=runtime)
        store = Store.create(path, config=_as_json(config), dim=None, vectors=config.vectors)
        return cls(store, config, backbone=backbone, runtime=runtime)

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        encoder: str | Encoder | None = None,
        backbone: str | Backbone | None = None,
        runtime: RuntimeConfig | None = None,
        allow_download: bool = False,
    ) -> Self:
        """The index in a folder, by this or another process.

        Args:
            path: The folder.
            encoder: Where the index was made with an object: that object again. The name of an encoder that may be
                fetched or that is a relative folder.
            backbone: Only where the backbone lies elsewhere now, or is loaded already: its folder, or itself. Its
                weights are compared when they are loaded.
            runtime: Device, types and search of this process.
            allow_download: Models that the index names may be fetched from the hub. Otherwise they are used from this
                machine only: an absolute folder, the hub's cache, or what ships with packages.

        Raises:
            StoreError: There is no index there.
            IncompatibleStoreError: It was made in another format, with another encoder or another backbone.
        """
        store = open_store(path)
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
            store, config, backbone=loaded, runtime=runtime,
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
        return _reopened, (self.path, encoder, models.given_gate, models.runtime)

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
        adding = IngestPipeline(
            self.store,
            self.config.chunk_tokens,
            count=models.count_tokens,
            compress=models.compress,
            record=models.record,
        )
        return adding.add(documents, show_progress=show_progress)

    def split(self, document: Document) -> list[Chunk]:
        """The chunks that `add` would make of a document, in order; nothing is kept. None where it has no text."""
        return list(split(document, chunk_tokens=self.config.chunk_tokens, count=self._models.count_tokens))

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

    def metadata(self, document_id: str) -> Mapping[str, Any] | None:
        """The metadata of the document of that id; None where there is none."""
        with self.store.snapshot() as snapshot:
            first = snapshot.chunks(snapshot.document_blocks(document_id)[:1])
            return first[0].metadata if first else None

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

    # Parts, loaded when they are first needed

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded once and compared with the one that made the index.

        Raises:
            ValueError: The index holds dense memory, or the device is not there.
            CheckpointError: It cannot be loaded.
            IncompatibleStoreError: It has other weights than the one that made the index.
        """
        return self._models.backbone

    @contextmanager
    def question_context(
        self, question: str, filter: Filter | None = None, config: RecallConfig | None = None
    ) -> Iterator[QuestionContext]:
        """The index as one question sees it, from one snapshot: what the loop, the trainers and benchmarks work on.

        Raises:
            ValueError: The question is empty or overlong, or the filter is none.
        """
        question, settings = checked_question(question), LoopConfig.complete(config)
        encoder = None if self.config.encoder is None else self.encoder
        latent, kv_cache = self._models.latent_gate(question), self._models.kv_cache
        with self.store.snapshot() as snapshot:
            admitted = None if filter is None else snapshot.select(filter)
            blocks, stage = BlockLoader(snapshot, self._seen), None
            if encoder is not None:
                words = snapshot if admitted is None else snapshot.within(admitted)
                analyzer, search = QueryAnalyzer(question, encoder, words), self._search(snapshot)
                stage = FirstStage(analyzer, words, search, admitted, settings.first_stage, settings.links)
            trained: Gate = NoGate()
            if latent is not None and kv_cache is not None:
                trained = KVGate(latent, blocks, kv_cache)
            elif stage is not None:
                trained = DenseGate(self.gate, blocks, stage)
            yield QuestionContext(
                loader=blocks,
                config=settings,
                admitted=admitted,
                count=self._models.count_tokens,
                dense=stage,
                gate=make_gate(settings, trained, blocks, stage),
                kv_cache=kv_cache,
            )

    def _search(self, snapshot: Snapshot) -> DenseSearch | None:
        with self._guard:
            if self._dense is None or self._dense[0] != snapshot.generation:
                kind, device = self._models.runtime.search, device_of(self._models.runtime.device)
                search: DenseSearch
                if isinstance(snapshot, ShardedSnapshot):
                    parts = snapshot.shard_vectors()
                    search = ShardedSearch(parts, [dense_search(vectors, kind, device) for vectors in parts])
                else:
                    search = dense_search(snapshot.vectors(), kind, device)
                self._dense = (snapshot.generation, search)
            return self._dense[1]


_OBJECT = "object:"


def _kept_settings(store: Store) -> dict[str, Any]:
    """The settings that an index was made with.

    Raises:
        CorruptStoreError: They are not those of an index.
    """
    kept = dict(store.config)
    kept.pop("search", None)  # older indexes name it; now it is chosen when an index is opened
    try:
        for name in ("encoder", "backbone"):
            if not isinstance(kept[name], str | None):
                raise ValueError(f"{name}={kept[name]!r} is not a name")
        IndexConfig(**kept)
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptStoreError(f"the settings of the index {str(store.path)!r} cannot be used: {error}") from error
    return kept


def _reopened(path: Path, encoder: Encoder | None, gate: GateHead | None, runtime: RuntimeConfig) -> MemoryIndex:
    index = MemoryIndex.open(path, encoder=encoder, runtime=runtime)
    index._models.use_gate(gate)
    return index


def _with_absolute_folders(config: IndexConfig) -> IndexConfig:
    """The settings with folders that mean the same from every working folder."""
    encoder = absolute(config.encoder) if isinstance(config.encoder, str) else config.encoder
    return dataclasses.replace(config, encoder=encoder, backbone=absolute(config.backbone))


def _encoder_name(encoder: str | Encoder | None) -> str | None:
    return encoder if encoder is None or isinstance(encoder, str) else f"{_OBJECT}{type(encoder).__name__}"


def _as_json(config: IndexConfig) -> dict[str, Any]:
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {**values, "encoder": _encoder_name(config.encoder)}
