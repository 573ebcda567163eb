"""The index of an application: add documents, recall blocks, answer questions."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from compmem.backbone import Backbone
from compmem.base_index import BaseIndex, checked_question
from compmem.checks import checked_ids
from compmem.config import IndexConfig, LoopConfig, RecallConfig, RuntimeConfig, SearchKind
from compmem.devices import device_of
from compmem.encoder import LoadedEncoder
from compmem.errors import IncompatibleStoreError
from compmem.gate import GateHead
from compmem.index_models import IndexModels
from compmem.index_settings import config_of_store, settings_json, with_absolute_folders
from compmem.ingest.chunking import has_own_labels, split
from compmem.ingest.pipeline import IngestPipeline
from compmem.ingest.workers import Workers
from compmem.loop.blocks import BlockCache, BlockLoader
from compmem.loop.context import QuestionContext
from compmem.loop.gates import DenseGate, Gate, KVGate, NoGate, make_gate
from compmem.provenance import record_provenance
from compmem.retrieval.candidates import CandidateGenerator
from compmem.retrieval.query import QueryAnalyzer
from compmem.retrieval.spelling import correct_spelling
from compmem.retrieval.vector_search import DenseSearch, NewestSearch, ShardedSearch, dense_search
from compmem.schema import Chunk, Document, Encoder, Filter
from compmem.store import DocumentInfo, FolderStore, ShardedStore, Snapshot, Store, StoreInfo, open_store, store_exists

if TYPE_CHECKING:
    import torch


class MemoryIndex(BaseIndex):
    """Documents compressed into memory on disk, and questions to them.

    Call `open_or_create`, `create` or `open`, not the constructor. Any number of threads may use one index.
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
        encoder_named: bool = True,
        backbone_named: bool = True,
        allow_download: bool = False,
    ) -> None:
        self.store = store
        models = IndexModels(
            store, config, encoder=encoder, backbone=backbone, gate=gate, runtime=runtime or RuntimeConfig(),
            encoder_named=encoder_named, backbone_named=backbone_named, allow_download=allow_download,
        )  # fmt: skip
        super().__init__(config, models)
        self._block_cache = BlockCache()
        self._search_cache = NewestSearch()

    @classmethod
    def create(
        cls,
        path: str | Path | None = None,
        config: IndexConfig | None = None,
        *,
        backbone: Backbone | None = None,
        runtime: RuntimeConfig | None = None,
        shards: int | None = None,
        check_models: bool | None = None,
    ) -> Self:
        """A new index in a folder; without a path, a temporary one that is removed when it is closed.

        Args:
            path: The folder.
            config: How documents are compressed.
            backbone: A loaded backbone for KV memory; the index stores the name in the settings as its name.
            runtime: Device, types and search of this process.
            shards: Number of folders that the documents are divided into, by a hash of their ids. None: a single
                folder.
            check_models: Load the models and try them on a short text first, so that no folder is made with a model
                that cannot be loaded, or with settings that it does not support. None: load only an encoder that is
                named and not the default one.

        Raises:
            ValueError: The path is a file or a folder that is not empty, or there are too many shards, or shards
                without a path, or a backbone for dense memory. Also what loading a model raises.
            StoreLockedError: Another process is creating an index there.
            StoreError: The folder cannot be written.
        """
        config = with_absolute_folders(config or IndexConfig())
        runtime = runtime or RuntimeConfig()
        models = IndexModels(None, config, encoder=None, backbone=backbone, gate=None, runtime=runtime)
        encoder, backbone = models.load_checked(check_models)
        if shards is not None:
            if path is None:
                raise ValueError("shards need a path")
            sharded = ShardedStore.create_shards(path, shards, config=settings_json(config), vectors=config.vectors)
            return cls(sharded, config, encoder=encoder, backbone=backbone, runtime=runtime)
        store = FolderStore.create(path, config=settings_json(config), vectors=config.vectors)
        return cls(store, config, encoder=encoder, backbone=backbone, runtime=runtime)

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
        """The index in a folder.

        Args:
            path: The folder.
            encoder: The same encoder object, if the index was made with an object. Or the name of the encoder, which
                may then be downloaded or be a relative folder.
            backbone: The backbone's folder if it has moved, or the backbone if it is already loaded. Its weights are
                compared with those that the index was made with.
            runtime: Device, types and search of this process.
            allow_download: Models that the index names may be downloaded from the hub. Otherwise only models on this
                machine are used: an absolute folder, the hub's cache, or a package.

        Raises:
            StoreError: There is no index.
            IncompatibleStoreError: The index has another format, encoder or backbone.
        """
        return cls.of_store(
            open_store(path), encoder=encoder, backbone=backbone, runtime=runtime, allow_download=allow_download
        )

    @classmethod
    def of_store(
        cls,
        store: Store,
        *,
        encoder: str | Encoder | None = None,
        backbone: str | Backbone | None = None,
        runtime: RuntimeConfig | None = None,
        allow_download: bool = False,
    ) -> Self:
        """The index over an open store, which is closed if this fails. Arguments and errors are those of `open`."""
        with ExitStack() as opened:
            opened.callback(store.close)
            config = config_of_store(store, encoder, backbone)
            loaded, named = (None, True) if isinstance(backbone, str) else (backbone, False)
            index = cls(
                store, config, backbone=loaded, runtime=runtime,
                encoder_named=encoder is not None, backbone_named=named, allow_download=allow_download,
            )  # fmt: skip
            if loaded is not None:
                _ = index.backbone  # refused here if it is another one
            opened.pop_all()
        return index

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        config: IndexConfig | None = None,
        *,
        backbone: Backbone | None = None,
        runtime: RuntimeConfig | None = None,
        shards: int | None = None,
        allow_download: bool = False,
    ) -> Self:
        """The index in a folder; a new one if the folder does not exist or is empty.

        Args:
            path: The folder.
            config: Settings of a new index. An existing index must have the same settings; `ratio` and `kv_pruning`
                may be left out. None: the defaults for a new index, any settings for an existing one.
            backbone: As in `create` and `open`.
            runtime: Device, types and search of this process.
            shards: As in `create`; an existing index must have as many.
            allow_download: As in `open`.

        Raises:
            ValueError: The path is a file, or a folder that contains other files.
            IncompatibleStoreError: The index has other settings, shards, format, encoder or backbone.
        """
        if not store_exists(path):
            try:
                return cls.create(path, config, backbone=backbone, runtime=runtime, shards=shards)
            except ValueError:
                if not store_exists(path):  # otherwise another process has just created it
                    raise
        encoder, named = (None, None) if config is None else (config.encoder, config.backbone)
        index = cls.open(
            path, encoder=encoder, backbone=backbone or named, runtime=runtime, allow_download=allow_download
        )
        settings = {} if config is None else settings_json(with_absolute_folders(config))
        left_out = {name for name in ("ratio", "kv_pruning") if settings.get(name) is None}
        try:
            index.check_made_with({name: value for name, value in settings.items() if name not in left_out}, shards)
        except IncompatibleStoreError:
            index.close()
            raise
        return index

    def check_made_with(self, settings: Mapping[str, Any], shards: int | None = None) -> None:
        """Compare settings with those that the index was made with.

        Args:
            settings: Fields of `IndexConfig` by name.
            shards: Number of shards. None: any.

        Raises:
            IncompatibleStoreError: They differ.
        """
        names = {name: self.store.config[name] for name in ("encoder", "backbone")}
        here = {**settings_json(self.config), **names, "shards": self.store.shard_count}
        expected = settings if shards is None else {**settings, "shards": shards}
        for name, value in expected.items():
            if here[name] != value:
                raise IncompatibleStoreError(f"{str(self.path)!r} was made with {name}={here[name]!r}, not {value!r}")

    @property
    def path(self) -> Path:
        """The folder of the index."""
        return self.store.path

    @property
    def temporary(self) -> bool:
        """Whether the folder is removed when the index is closed."""
        return self.store.temporary

    def close(self) -> None:
        """Closes files; a temporary index is removed."""
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
        """Pickling and copying: a copy opens the same folder again."""
        return reopen, (MemoryIndex.open, self.path, self._models.current_gate, self._opening_arguments())

    def _opening_arguments(self) -> dict[str, Any]:
        """The arguments with which a copy of this index is opened."""
        encoder = None if isinstance(self.config.encoder, str) else self.config.encoder
        moved = self.config.backbone != self.store.config.get("backbone")
        return {
            "encoder": encoder, "backbone": self.config.backbone if moved else None,
            "runtime": self._models.runtime, "allow_download": self._models.allow_download,
        }  # fmt: skip

    # Writing

    def add(self, documents: Iterable[Document], *, show_progress: bool = False, workers: int | None = None) -> int:
        """Compresses documents and keeps them; returns how many were new or changed.

        Documents stream: a batch at a time is held, compressed and committed. A document that is known by id and
        content is split, but not compressed again; one that is known by id and has changed replaces the old one.

        Args:
            documents: Documents with ids of their own.
            show_progress: A bar on the terminal.
            workers: Number of processes that split and compress. This process writes. The index is the same as with one
                process. None: all in this process.

        Raises:
            ValueError: A document is empty, cannot be stored, or has the id of another one with other content in this
                call; or the number of workers is none. Documents that were committed before stay.
            TypeError: Something is no document.
            StoreLockedError: Another process is writing.
            WorkerError: A worker was killed. What was committed stays; adding the same documents again completes it.
        """
        models = self._models
        pipeline = IngestPipeline(self.store, models.document_compressor(), partial(record_provenance, self.store))
        if workers is None:
            return pipeline.add(documents, show_progress=show_progress)
        with Workers(workers, models.document_compressor) as pool:
            return pipeline.add(documents, show_progress=show_progress, compress_tasks=pool.compress)

    def split(self, document: Document) -> list[Chunk]:
        """The chunks that `add` would make of a document, in order, without storing them; empty if it has no text."""
        return list(split(document, chunk_tokens=self.config.chunk_tokens, count=self._models.count_tokens))

    def delete(self, ids: Sequence[str]) -> int:
        """Deletes documents; returns how many existed. Unknown ids are ignored.

        Raises:
            ValueError: One id is given, not a list.
            TypeError: It is no list of strings.
            StoreLockedError: Another process is writing.
            StoreError: It could not be written.
        """
        return self.store.delete(checked_ids(ids))

    def compact(self) -> None:
        """Rewrites the folder without deleted and replaced documents.

        Raises:
            CorruptStoreError: A block does not match its checksum; nothing has changed.
            StoreLockedError: Another process is writing.
            StoreError: It could not be written; the message says whether anything has changed.
        """
        self.store.compact()

    def copy_to(self, path: str | Path) -> None:
        """Copies the current state of the index into another folder; readers can continue, writers wait.

        Raises:
            ValueError: The path is a file, or a folder that is not empty.
            StoreLockedError: Another process is writing.
        """
        self.store.copy_to(path)

    # Reading

    def get(self, document_id: str) -> Document | None:
        """The whole document with that id, or None.

        It has chunks only if it was given in chunks and one of them has a context of its own or a heading that is none
        in the text; to change the text of such a document, replace both `text` and `chunks`.
        """
        with self.store.snapshot() as snapshot:
            document = snapshot.document(document_id)
        return document if document is None or has_own_labels(document) else replace(document, chunks=None)

    def metadata(self, document_id: str) -> Mapping[str, Any] | None:
        """The metadata of the document with that id, or None."""
        with self.store.snapshot() as snapshot:
            return snapshot.metadata(document_id)

    def chunks(self, document_id: str) -> list[Chunk]:
        """The chunks of a document, in order; empty for an unknown id."""
        with self.store.snapshot() as snapshot:
            return snapshot.chunks(snapshot.document_blocks(document_id))

    def count_chunks(self, ids: Iterable[str]) -> dict[str, int]:
        """The number of chunks of each of these documents; 0 for an unknown id."""
        with self.store.snapshot() as snapshot:
            return {each: len(snapshot.document_blocks(each)) for each in ids}

    def documents(
        self, filter: Filter | None = None, *, offset: int = 0, limit: int | None = None
    ) -> list[DocumentInfo]:
        """The documents that a filter admits, without their texts.

        Args:
            filter: Conditions on their metadata. None: all documents.
            offset: How many to skip.
            limit: Maximum number of documents to return. None: all.

        Raises:
            ValueError: The filter is invalid, or a number is below 0.
        """
        with self.store.snapshot() as snapshot:
            return list(snapshot.documents(filter, offset=offset, limit=limit))

    def count_documents(self, filter: Filter | None = None) -> int:
        """The number of documents that a filter admits. Raises what `documents` raises."""
        with self.store.snapshot() as snapshot:
            return snapshot.count_documents(filter)

    def verify(self) -> list[str]:
        """Checks every checksum; returns descriptions of the problems found, empty if there are none."""
        return self.store.verify()

    def info(self) -> StoreInfo:
        """Statistics of the index: contents and size on disk."""
        return self.store.info()

    # Models, loaded on first use

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded once and compared with the one that the index was made with.

        Raises:
            ValueError: The index has dense memory, or the device is not available.
            CheckpointError: It cannot be loaded.
            IncompatibleStoreError: Its weights differ from those that the index was made with.
        """
        return self._models.backbone

    @contextmanager
    def question_context(
        self, question: str, filter: Filter | None = None, config: RecallConfig | None = None
    ) -> Iterator[QuestionContext]:
        """The index for one question, from one snapshot, for the loop, the trainers and benchmarks.

        Raises:
            ValueError: The question is empty or too long, or the filter is invalid.
        """
        question, settings = checked_question(question), LoopConfig.complete(config)
        encoder = None if self.config.encoder is None else self.encoder
        backbone_gate, kv_cache = self._models.backbone_gate(question), self._models.kv_cache
        with self.store.snapshot() as snapshot:
            admitted = None if filter is None else snapshot.select(filter)
            blocks, generator = BlockLoader(snapshot, self._block_cache), None
            if encoder is not None:
                lexical_index = snapshot.lexical_index(admitted)
                question = correct_spelling(question, lexical_index)
                analyzer, search = QueryAnalyzer(question, encoder, lexical_index), self._search(snapshot)
                generator = CandidateGenerator(
                    analyzer, lexical_index, search, admitted, settings.first_stage, settings.links
                )
            trained: Gate = NoGate()
            if backbone_gate is not None and kv_cache is not None:
                trained = KVGate(backbone_gate, blocks, kv_cache)
            elif generator is not None:
                trained = DenseGate(self.gate, blocks, generator)
            yield QuestionContext(
                loader=blocks,
                config=settings,
                admitted=admitted,
                count=self._models.count_tokens,
                candidate_generator=generator,
                gate=make_gate(settings, trained, blocks, generator),
                kv_cache=kv_cache,
            )

    def _search(self, snapshot: Snapshot) -> DenseSearch:
        def build(kind: SearchKind, device: "torch.device | None" = None) -> DenseSearch:
            found = [dense_search(vectors, kind, device) for vectors in snapshot.vectors_by_folder()]
            return found[0] if len(found) == 1 else ShardedSearch(found)

        runtime = self._models.runtime
        return self._search_cache.of(
            snapshot.generation, lambda: build(runtime.search, device_of(runtime.device)), lambda: build("exact")
        )


def reopen(
    open_function: Callable[..., MemoryIndex], source: Any, gate: GateHead | None, arguments: Mapping[str, Any]
) -> MemoryIndex:
    """A copy of an index, with its dense gate."""
    index = open_function(source, **arguments)
    index._models.use_gate(gate)
    return index
