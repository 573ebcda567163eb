"""What a store and a view of it offer: one folder, a folder of shards, or shards in other processes."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from compmem.schema import Chunk, Document, Filter, KVStates, MemoryBlock
from compmem.store.blocks import Numbers
from compmem.store.info import StoreInfo
from compmem.store.lexical import LexicalIndex
from compmem.store.manifest import JSON
from compmem.store.vectors import ChunkVectors


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentInfo:
    """A document without its text."""

    id: str
    title: str
    metadata: Mapping[str, Any]
    characters: int
    chunks: int


class Snapshot(ABC):
    """The state of one commit. Made by `Store.snapshot`; any thread may use it while it is open."""

    @property
    @abstractmethod
    def generation(self) -> int:
        """The number of the commit."""

    @abstractmethod
    def __len__(self) -> int:
        """The number of live blocks."""

    @abstractmethod
    def select(self, filter: Filter | None) -> Numbers:
        """Numbers of the live blocks that a filter admits, ascending. None: all of them.

        Raises:
            ValueError: An operator is unknown, or a value has a type that it does not accept.
        """

    @abstractmethod
    def chunks(self, blocks: Sequence[int] | Numbers) -> list[Chunk]:
        """The chunks of blocks by number, in the order given.

        Raises:
            ValueError: A block is not in this snapshot.
            CorruptStoreError: A text does not match its checksum.
        """

    @abstractmethod
    def blocks(self, blocks: Sequence[int] | Numbers, *, kv: bool = True) -> list[MemoryBlock]:
        """Blocks by number with their vectors and, by default, KV states, in the order given.

        Raises:
            ValueError: A block is not in this snapshot.
            CorruptStoreError: A text, vectors or KV states do not match their checksum.
        """

    @abstractmethod
    def kv_states(self, blocks: Sequence[int] | Numbers) -> list[KVStates]:
        """The KV states alone, mapped from the files, in the order given.

        Raises:
            ValueError: A block is not in this snapshot, or has none.
            CorruptStoreError: They do not match their checksum.
        """

    @abstractmethod
    def vectors_by_folder(self) -> list[ChunkVectors]:
        """The whole-chunk vectors of all live blocks: those of each folder, under the numbers of this view.

        Raises:
            StoreError: They are in other processes.
        """

    @abstractmethod
    def lexical_index(self, admitted: Numbers | None = None) -> LexicalIndex:
        """The lexical index of these blocks, ascending by number; others do not affect it. None: of all live blocks."""

    @abstractmethod
    def documents(
        self, filter: Filter | None = None, *, offset: int = 0, limit: int | None = None
    ) -> Iterator[DocumentInfo]:
        """The documents that a filter admits, in the order they were added: at most `limit` of them behind `offset`.

        Documents of shards come shard by shard.

        Raises:
            ValueError: An operator is unknown, or a value has a type that it does not accept.
        """

    @abstractmethod
    def count_documents(self, filter: Filter | None = None) -> int:
        """The number of documents that a filter admits. Raises what `documents` raises."""

    @abstractmethod
    def document(self, document_id: str) -> Document | None:
        """A document with its chunks, or None. If these have different contexts, it has none itself.

        Raises:
            CorruptStoreError: Its text does not match its checksums.
        """

    @abstractmethod
    def metadata(self, document_id: str) -> Mapping[str, Any] | None:
        """The metadata of a document, or None.

        Raises:
            CorruptStoreError: It is not a JSON object.
        """

    @abstractmethod
    def document_blocks(self, document_id: str) -> list[int]:
        """Numbers of a document's blocks in order; none for an unknown document."""


class Store(ABC):
    """Memory blocks in one folder or several, for many readers and one writer; threads may share one object."""

    path: Path
    """The folder."""
    config: Mapping[str, Any]
    """The settings it was created with."""
    folders: Sequence[Path]
    """The folders of its shards, in order; its own folder if it is not divided."""
    shard_count: int | None = None
    """Number of shards; None if it is not divided."""
    temporary: bool = False
    """Whether the folder is removed when the last store of this process that uses it is closed."""

    @property
    @abstractmethod
    def generation(self) -> int:
        """A number that is another one after every commit, of any process."""

    @abstractmethod
    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """A consistent view, open until the end of the block; later commits are not visible in it.

        Of shards, each is consistent.

        Raises:
            StoreError: Another index is in the folder now, or a process with shards does not answer.
        """

    @abstractmethod
    def writing(self) -> AbstractContextManager[None]:
        """Hold the writer's lock for the block, for several calls that write.

        Raises:
            StoreLockedError: Another process has it.
            StoreError: The folder cannot be written.
        """

    @abstractmethod
    def add(
        self,
        documents: Iterable[tuple[Document, Iterable[MemoryBlock]]],
        *,
        record: Callable[[], None] = lambda: None,
    ) -> None:
        """Add documents with their blocks, all or none (of one shard); a document with a known id is replaced.

        Documents and blocks may be generated during the write; only a part of them is in memory.

        Args:
            documents: Documents, each with its blocks.
            record: Called within the write, to store facts about what is added.

        Raises:
            ValueError: A document cannot be stored, or an id occurs twice.
            StoreLockedError: Another process is writing.
            StoreError: It could not be written; nothing has changed.
        """

    @abstractmethod
    def hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """The content hash of each of these documents that is in the store."""

    @abstractmethod
    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; returns how many existed.

        Raises:
            StoreLockedError: Another process is writing.
            StoreError: It could not be written; nothing has changed.
        """

    @abstractmethod
    def compact(self) -> None:
        """Rewrite the files without deleted data. Open snapshots stay valid; their files are removed when they close.

        Raises:
            CorruptStoreError: A block does not match its checksum; nothing has changed.
            StoreLockedError: Another process is writing.
            StoreError: It could not be written; the message says whether anything has changed.
        """

    @abstractmethod
    def copy_to(self, path: Path | str) -> None:
        """Copy everything that the last commit uses into a new or empty folder.

        Raises:
            ValueError: The path is a file, or a folder that is not empty.
            StoreLockedError: Another process is writing.
            StoreError: The other folder cannot be written.
        """

    @abstractmethod
    def verify(self) -> list[str]:
        """Problems found after reading everything; empty if there are none."""

    @abstractmethod
    def put_meta(self, key: str, value: JSON) -> None:
        """Store a small JSON fact under a key, in every shard.

        Raises:
            ValueError: It is not JSON.
            StoreLockedError: Another process is writing.
            StoreError: It could not be written; nothing has changed.
        """

    @abstractmethod
    def get_meta(self, key: str) -> JSON:
        """The fact under a key, or None; shards without it are skipped.

        Raises:
            CorruptStoreError: It cannot be read.
        """

    @abstractmethod
    def info(self) -> StoreInfo:
        """Statistics of the store: contents and size on disk.

        Raises:
            CorruptStoreError: The manifest has invalid values.
        """

    @abstractmethod
    def close(self) -> None:
        """Close it; a temporary folder is removed. Open snapshots stay valid."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
