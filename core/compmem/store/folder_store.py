"""The store in one folder with all memory blocks. It uses no model."""

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Final, Self, get_args

from filelock import FileLock, Timeout

from compmem import temporary
from compmem.config import KVType, VectorType
from compmem.errors import CorruptStoreError, StoreError, StoreLockedError
from compmem.locks import Lock
from compmem.schema import Document, MemoryBlock
from compmem.store import compacting, lexical, verifying, writing
from compmem.store.cache import Cache
from compmem.store.connection import Connection
from compmem.store.folder import Folder, os_errors
from compmem.store.info import KV_WRITTEN, StoreInfo, store_info
from compmem.store.interface import Store
from compmem.store.manifest import (
    JSON,
    Manifest,
    Rows,
    parse_json,
    read_state,
    storable,
    unreadable,
    write_state,
)
from compmem.store.snapshot import FolderSnapshot

log = logging.getLogger(__name__)

LOCK_SECONDS: Final = 2.0
"""Longest wait of a writer for another one, in seconds."""

COMPACT_AT: Final = 0.5
"""Default share of dead blocks above which a write compacts."""

_MIN_DEAD_BLOCKS: Final = 256
"""Fewer dead blocks are never compacted by a write."""


class FolderStore(Store):
    """A folder of memory blocks."""

    def __init__(self, folder: Folder, manifest: Manifest, facts: Mapping[str, Any]) -> None:
        self.path = folder.path
        self.folders = [folder.path]
        self.config = facts["config"]
        self._kinds: tuple[VectorType, KVType] = (facts["vectors"], self.config.get("kv", "bf16"))
        self._folder = folder
        self._manifest = manifest
        self._cache = Cache(folder, self._kinds[0])
        self._mutex = Lock(forks_wait=True)  # SQLite cannot write in a child forked during a write
        self._writer: tuple[int, int] | None = None
        self._written: Connection | None = None
        self._remove = temporary.register(self, folder.path)
        self.temporary = self._remove is not None

    @classmethod
    def create(cls, path: Path | str | None, *, config: Mapping[str, Any], vectors: VectorType) -> Self:
        """An empty store in a new or empty folder.

        Args:
            path: The folder. None: a temporary one, removed when the store is closed.
            config: JSON settings to store in it.
            vectors: How vectors are stored.

        Raises:
            ValueError: The path is a file, or a folder that is not empty; or a setting is not JSON.
            StoreLockedError: Another process is creating an index there.
            StoreError: The folder cannot be written.
        """
        facts: dict[str, JSON] = {
            "config": _json("config", dict(config)),
            "vectors": vectors,
            "terms": lexical.fingerprint(),
        }
        _check_kinds(facts)
        folder = Folder(temporary.make_folder() if path is None else Path(path))
        folder.prepare()
        with _locked(FileLock(folder.lock), folder):
            folder.prepare()
            Manifest.create(folder, facts)
        return cls.open(folder.path)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The store in a folder.

        Raises:
            StoreError: There is no store.
            IncompatibleStoreError: Its format is not supported by this version.
            CorruptStoreError: Its manifest is damaged, or belongs to another program.
        """
        folder = Folder(Path(path))
        if not folder.manifest.exists() and not folder.manifest.is_symlink():
            if folder.path.is_file():
                raise StoreError(f"{str(path)!r} is a file, not the folder of an index")
            if folder.has_segments():
                raise StoreError(f"{str(path)!r} has an index without its {folder.manifest.name}: it cannot be opened")
            raise StoreError(
                f"{str(path)!r} has no index: create one with `compmem add` or MemoryIndex.create({str(path)!r})"
            )
        manifest = Manifest(folder)
        try:
            with unreadable(folder.path):
                facts = manifest.check()
                _check_kinds(facts)
                return cls(folder, manifest, facts)
        except BaseException:
            manifest.close()
            raise

    @property
    def identity(self) -> tuple[int, int] | None:
        """Device and inode of the manifest: others where another index took its place."""
        return self._manifest.identity

    @property
    def generation(self) -> int:
        """A number that increases with every commit, of any process."""
        with self._manifest.reading() as rows:
            return read_state(rows).generation

    @contextmanager
    def snapshot(self) -> Iterator[FolderSnapshot]:
        """A consistent view, open until the end of the block; later commits are not visible in it."""
        with self._manifest.reading() as rows:
            yield FolderSnapshot(rows, self._cache)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock for the block, for several calls that write."""
        with self._mutex:
            here = (os.getpid(), threading.get_ident())  # a forked child does not hold its parent's lock
            if self._writer == here:
                yield
                return
            self._manifest.check_files()
            # A new lock object each time, since one that is inherited by a fork cannot be used.
            with _locked(FileLock(self._folder.lock, thread_local=False), self._folder):
                self._writer = here
                try:
                    yield
                finally:
                    self._writer = None

    def add(
        self,
        documents: Iterable[tuple[Document, Iterable[MemoryBlock]]],
        *,
        record: Callable[[], None] = lambda: None,
        numbers: Iterable[int] | None = None,
    ) -> None:
        """Add documents with their blocks, all or none; a document with a known id is replaced.

        `numbers` is the least number of each document's first block, for a shard; None: the next free number.
        """
        first = next(iterator := iter(documents), None)
        if first is None:
            return
        with self.writing():
            with self._transaction() as connection:
                writing.insert(connection, self._folder, chain([first], iterator), self._kinds, numbers)
                record()
            self._compact_if_due()

    @property
    def next_block(self) -> int:
        """Number of the next block."""
        with self._manifest.reading() as rows:
            return read_state(rows).next_block

    def hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """The content hash of each of these documents that is in the store."""
        with self._manifest.reading() as rows:
            found = {i: rows("SELECT hash FROM documents WHERE id = ?", i) for i in ids if storable(i)}
        return {i: hashes[0][0] for i, hashes in found.items() if hashes}

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; returns how many existed."""
        with self.writing():
            with self._transaction() as connection:
                writing.refresh_terms(connection)
                removed = writing.remove(connection, ids)
            self._compact_if_due()
        return removed

    def compact(self) -> None:
        """Rewrite the files without deleted data."""
        with self.writing():
            with self._transaction() as connection:
                compacting.compact(connection, self._folder, self._cache)
            try:
                self._sweep()  # before the manifest is rewritten, which needs disk space
                self._manifest.vacuum()
                self._sweep()
            except StoreError as error:
                raise StoreError(
                    f"the index {str(self.path)!r} is compacted, but its manifest still takes the space of "
                    f"what was deleted: {error.__cause__ or error}"
                ) from error

    def copy_to(self, path: Path | str) -> None:
        """Copy everything that the last commit uses into a new or empty folder."""
        other = Folder(Path(path))
        other.prepare()
        with self.writing(), os_errors(other.path, "write"):
            with self._manifest.reading() as rows:
                files = _named_files(rows, self._folder)
            for file in files:
                self._folder.copy_into(other, file)
            self._manifest.copy_to(other)

    def verify(self) -> list[str]:
        """Problems found after reading everything; empty if there are none."""
        try:
            with self._manifest.reading() as rows, unreadable(self.path):
                return list(dict.fromkeys(verifying.verify(rows, read_state(rows), self._cache)))
        except CorruptStoreError as error:
            return [str(error)]

    def put_meta(self, key: str, value: JSON) -> None:
        """Store a small JSON fact under a key."""
        text = json.dumps(_json(key, value))
        with self._transaction() as connection:
            connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, text))
            state = read_state(connection.rows)
            write_state(connection, replace(state, generation=state.generation + 1))

    def get_meta(self, key: str) -> JSON:
        """The fact under a key, or None."""
        with self._rows() as rows:
            found = rows("SELECT value FROM meta WHERE name = ?", key)
        value: JSON = parse_json(found[0][0], f"the fact {key!r} of {str(self.path)!r}") if found else None
        return value

    def info(self) -> StoreInfo:
        """Statistics of the store: contents and size on disk."""
        with unreadable(self.path):
            logs = [self.path / f"manifest.sqlite{end}" for end in ("", "-wal")]
            with self._manifest.reading() as rows:
                return store_info(rows, self._kinds[0], self.get_meta(KV_WRITTEN), logs)

    def close(self) -> None:
        """Close the connections; a temporary folder is removed. Open snapshots stay valid."""
        self._manifest.close()
        self._cache.close()
        if self._remove is not None:
            self._remove()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A write transaction for the block, all or nothing; inside another transaction, it is a part of that."""
        with self.writing():
            if self._written is not None:
                yield self._written
                return
            with self._manifest.reading() as rows:
                before = read_state(rows)
            self._folder.remove_private()
            try:
                with self._manifest.writing() as connection:
                    self._written = connection
                    try:
                        yield connection
                    finally:
                        self._written = None
            except BaseException:
                self._drop_unnamed()
                raise
            if before.garbage:
                try:
                    self._sweep()
                except (OSError, StoreError) as error:  # the write itself has succeeded; the next one sweeps again
                    log.warning("old files of the index %r could not be removed: %s", str(self.path), error)

    @contextmanager
    def _rows(self) -> Iterator[Rows]:
        """The last commit, or the state in this thread's write transaction."""
        if self._written is not None and self._writer == (os.getpid(), threading.get_ident()):
            yield self._written.rows
            return
        with self._manifest.reading() as rows:
            yield rows

    def _compact_if_due(self) -> None:
        """Compact above a share of dead blocks; while a reader needs the old files, a later write does it."""
        share = self.config.get("compact_at", COMPACT_AT)
        if share is None:
            return
        with self._manifest.reading() as rows:
            dead = read_state(rows).deleted
            live = rows("SELECT count(document) FROM blocks")[0][0]
        if dead < _MIN_DEAD_BLOCKS or dead <= share * (live + dead) or not self._manifest.is_checkpointed():
            return
        try:
            self.compact()
        except StoreError as error:  # the write itself has succeeded
            log.warning("the index %r could not be compacted: %s", str(self.path), error)

    def _drop_unnamed(self) -> None:
        """Remove the files of a failed transaction. The state is read again, since an interrupt may follow a commit."""
        with self._manifest.reading() as rows:
            self._folder.remove_from(read_state(rows).next_file)

    def _sweep(self) -> None:
        """Remove files that no row names, if no reader can be at a commit that used them."""
        if not self._manifest.is_checkpointed():
            return
        with self._manifest.writing() as connection:
            rows = connection.rows
            done = self._folder.sweep(_named_files(rows, self._folder))
            write_state(connection, replace(read_state(rows), garbage=not done))


def _named_files(rows: Rows, folder: Folder) -> set[Path]:
    """The files that a commit uses; a file that was never written to may be missing."""
    serial = read_state(rows).vectors
    segments = {folder.kv(number) for (number,) in rows("SELECT serial FROM kv")}
    return segments | {folder.chunks(serial), folder.sentences(serial)}


@contextmanager
def _locked(lock: FileLock, folder: Folder) -> Iterator[None]:
    folder.check_plain(folder.lock, missing=True)
    with os_errors(folder.lock, "lock"):
        try:
            lock.acquire(timeout=LOCK_SECONDS)
        except Timeout:  # a subclass of OSError
            raise StoreLockedError(
                f"another process is writing to the index {str(folder.path)!r}: "
                "wait for it to end, or use another folder"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _check_kinds(facts: Mapping[str, Any]) -> None:
    if not isinstance(facts.get("config"), dict):
        raise ValueError("config is not a mapping")
    for name, value, allowed in (
        ("vectors", facts.get("vectors"), get_args(VectorType)),
        ("kv", facts["config"].get("kv", "bf16"), get_args(KVType)),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")
    share = facts["config"].get("compact_at")
    if share is not None and not (isinstance(share, int | float) and 0 < share <= 1):
        raise ValueError(f"compact_at={share!r} must be above 0 and at most 1, or None")


def _json(name: str, value: Any) -> JSON:
    try:
        kept: JSON = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{name!r} is not JSON: {error}") from error
    return kept
