"""The SQLite file of an index: its schema, its state and its connections.

Read transactions come from a pool, so snapshots can be nested and used from any thread.
"""

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from compmem.errors import CorruptStoreError, IncompatibleStoreError, StoreError
from compmem.locks import Lock
from compmem.store.connection import (
    Connection,
    check_files,
    connect,
    cut_log,
    errors,
    identity_of,
    mode_of,
    shorten,
    size_of,
    stamp_of,
)
from compmem.store.folder import Folder

JSON = bool | int | float | str | None | list[Any] | dict[str, Any]
Rows = Callable[..., list[tuple[Any, ...]]]
"""Runs one query in a read transaction: `rows(sql, *parameters)`."""

FORMAT: Final = 1
_APPLICATION: Final = 0x434D454D
_LOG_BYTES: Final = 1 << 20
"""If the log is longer after a commit, it is copied into the database and truncated, unless a reader needs it."""
_MAX_VALUES: Final = {"dim": 1 << 20, "generation": (1 << 48) - 1, "next_block": 1 << 48}
"""Largest values of the state, 2**56 for others; `shard_views` combines generations and blocks of shards."""
_MAX_IDLE_CONNECTIONS: Final = 16

LEXICAL_SCHEMA: Final = """
CREATE TABLE names(name TEXT NOT NULL, kind INTEGER NOT NULL, block INTEGER NOT NULL,
    PRIMARY KEY(name, kind, block)) WITHOUT ROWID;
CREATE INDEX names_of_block ON names(block);
CREATE VIRTUAL TABLE lexical USING fts5(title, body, content='', tokenize="ascii tokenchars '_'");
CREATE VIRTUAL TABLE vocabulary USING fts5vocab(lexical, 'row');
"""
"""The tables of the lexical index."""

_SCHEMA: Final = f"""
CREATE TABLE manifest(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE meta(name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE documents(key INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, hash TEXT NOT NULL,
    title TEXT NOT NULL, metadata TEXT NOT NULL);
CREATE TABLE blocks(number INTEGER PRIMARY KEY, document INTEGER NOT NULL, ordinal INTEGER NOT NULL,
    start INTEGER NOT NULL, characters INTEGER NOT NULL, sentences INTEGER NOT NULL, text_crc INTEGER NOT NULL,
    row INTEGER, sentence_row INTEGER, sentence_rows INTEGER, vector_crc INTEGER, kv INTEGER, kv_crc INTEGER);
CREATE UNIQUE INDEX blocks_of_document ON blocks(document, ordinal);
CREATE TABLE texts(number INTEGER PRIMARY KEY, text TEXT NOT NULL, headings TEXT NOT NULL, spans BLOB NOT NULL);
CREATE TABLE segments(start INTEGER PRIMARY KEY, rows INTEGER NOT NULL, crc INTEGER NOT NULL);
CREATE TABLE kv(serial INTEGER PRIMARY KEY, bytes INTEGER NOT NULL, blocks INTEGER NOT NULL);
{LEXICAL_SCHEMA.lstrip()}"""


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The state of one commit: the lengths of the vector files and the counters."""

    generation: int = 0
    """Increases with every commit."""
    epoch: int = 0
    """Increases when blocks are deleted or moved; between two commits with the same epoch, blocks were only added."""
    next_block: int = 1
    """Number of the next block; numbers are never reused."""
    next_file: int = 1
    """Serial of the next file; serials are never reused."""
    vectors: int = 0
    """Serial of the two vector files."""
    dim: int | None = None
    chunk_rows: int = 0
    sentence_rows: int = 0
    deleted: int = 0
    """Deleted blocks whose bytes are still in the vector and KV files."""
    garbage: bool = False
    """The folder may contain files that no row names."""

    @classmethod
    def parse(cls, text: str) -> "State":
        """The state from the output of `dump`.

        Raises:
            CorruptStoreError: It is invalid.
        """
        values = parse_json(text, "the manifest's state")
        names = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or values.keys() != names:
            raise CorruptStoreError("the manifest's state does not have the values that it should have")
        for name, value in values.items():
            if name == "dim" and value is None:
                continue
            if (
                not isinstance(value, int)
                or isinstance(value, bool) != (name == "garbage")
                or not 0 <= value <= _MAX_VALUES.get(name, 1 << 56)
            ):
                raise CorruptStoreError(f"the manifest's state has {name}={str(value)[:40]!r}")
        return cls(**values)

    def dump(self) -> str:
        """The state as JSON."""
        return json.dumps(asdict(self))


class Manifest:
    """Connections to the SQLite file: a pool of readers, and one writer at a time."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.identity = identity_of(folder)
        """Device and inode of the file when it was opened."""
        self.check_files()
        self._idle: list[Connection] = []
        self._guard = Lock()
        self._process = os.getpid()
        self._closed = False
        self._mode = mode_of(folder)
        self._stamp = stamp_of(folder)
        _manifests.add(self)
        self._shorten: weakref.finalize[[Folder, int, tuple[int, int] | None], Manifest] | None = None

    @staticmethod
    def create(folder: Folder, facts: Mapping[str, JSON]) -> None:
        """Write an empty manifest, atomically."""
        with (
            folder.placing(folder.manifest) as new,
            errors(folder.path),
            closing(sqlite3.connect(new, isolation_level=None)) as connection,
        ):
            connection.execute(f"PRAGMA application_id={_APPLICATION}")
            connection.execute(f"PRAGMA user_version={FORMAT}")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN")
            for statement in _SCHEMA.split(";\n"):
                connection.execute(statement)
            rows = [(name, json.dumps(value)) for name, value in facts.items()]
            connection.executemany("INSERT INTO manifest VALUES (?, ?)", [*rows, ("state", State().dump())])
            connection.execute("COMMIT")

    def check(self) -> dict[str, Any]:
        """The facts stored at creation, after a check of format and schema.

        Raises:
            IncompatibleStoreError: The folder has another format.
            CorruptStoreError: Tables are missing, or differ from those of this library.
        """
        with self.reading() as rows:
            if self._mode != "immutable" and rows("PRAGMA journal_mode") != [("wal",)]:
                raise CorruptStoreError(f"{str(self.folder.manifest)!r} has no write-ahead log")
            if rows("PRAGMA application_id") != [(_APPLICATION,)]:
                raise CorruptStoreError(f"{str(self.folder.manifest)!r} is not the manifest of an index")
            found = rows("PRAGMA user_version")[0][0]
            if found != FORMAT:
                raise IncompatibleStoreError(
                    f"{str(self.folder.path)!r} has format {found}, but this version of compmem reads format {FORMAT}"
                )
            if _schema_of(rows) != _expected_schema():
                raise CorruptStoreError(f"the tables in {str(self.folder.manifest)!r} are not those of an index")
            found = rows("SELECT name, value FROM manifest")
            facts = {name: parse_json(value, "a fact of the manifest") for name, value in found}
            read_state(rows)
        return facts

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """A read transaction: all queries in it see the same commit."""
        connection = self._acquire()
        guard = threading.Lock()
        over = False

        def rows(sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
            with guard, errors(self.folder.path):
                if over:
                    raise StoreError(f"this snapshot of {str(self.folder.path)!r} is closed")
                return connection.rows(sql, *parameters)

        try:
            rows("BEGIN")
            rows("SELECT 1 FROM manifest LIMIT 1")  # a deferred transaction starts with its first read
            yield rows
        finally:
            with guard:
                over = True
            self._release(connection)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A write transaction, committed at the end of the block and rolled back if the block raises."""
        if self._shorten is None or self._process != os.getpid():
            self._shorten = weakref.finalize(self, shorten, self.folder, os.getpid(), self.identity)
        with errors(self.folder.path), closing(self._connect("rw")) as connection:
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            finally:
                if size_of(self.folder.log) > _LOG_BYTES:
                    cut_log(connection)

    def is_checkpointed(self) -> bool:
        """Whether every reader sees the last commit, so that files only used by older ones can be removed.

        SQLite copies the last frame of its log into the database only when no reader needs the old page.
        """
        with errors(self.folder.path), closing(self._connect("rw")) as connection:
            busy, frames, copied = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return bool(busy == 0 and frames == copied)

    def vacuum(self) -> None:
        """Return the pages of deleted rows to the file system."""
        with errors(self.folder.path), closing(self._connect("rw")) as connection:
            try:
                connection.execute("VACUUM")
            finally:
                cut_log(connection)

    def copy_to(self, folder: Folder) -> None:
        """Copy the last commit into another folder, atomically."""
        with (
            folder.placing(folder.manifest) as new,
            errors(folder.path),
            closing(self._connect(self._mode)) as source,
            closing(sqlite3.connect(new, isolation_level=None)) as target,
        ):
            source.backup(target)

    def close(self) -> None:
        """Close idle connections now, and busy ones when they are returned."""
        with self._guard:
            self._closed = True
            idle, self._idle = self._idle, []
        if self._process == os.getpid():
            for connection in idle:
                connection.close()
            if self._shorten is not None:
                self._shorten()

    def close_idle(self) -> None:
        """Close idle connections before a fork, since a child that inherits them would share locks with its parent."""
        with self._guard:
            if self._process == os.getpid():
                while self._idle:
                    self._idle.pop().close()

    def _acquire(self) -> Connection:
        with self._guard:
            if self._closed:
                raise StoreError(f"the index {str(self.folder.path)!r} is closed")
            if self._process != os.getpid():
                _orphans.extend(self._idle)
                self._idle, self._process = [], os.getpid()
            self.check_files()
            if self._mode == "immutable" and (stamp := stamp_of(self.folder)) != self._stamp:
                self._idle, self._stamp = [], stamp
                self._mode = mode_of(self.folder)
            if self._idle:
                return self._idle.pop()
        connection = self._connect(self._mode)
        connection.execute("PRAGMA query_only=ON")
        return connection

    def _release(self, connection: Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:  # nothing was written; only this connection is lost
            connection.close()
            return
        with self._guard:
            if not self._closed and len(self._idle) < _MAX_IDLE_CONNECTIONS:
                self._idle.append(connection)
                return
        connection.close()

    def _connect(self, mode: str) -> Connection:
        self.check_files()
        with errors(self.folder.path):
            connection = connect(self.folder.manifest, mode)
        try:
            self.check_files()
        except BaseException:
            connection.close()
            raise
        return connection

    def check_files(self) -> None:
        """Make sure that the folder still has the index that was opened, and no files that SQLite must not open.

        Raises:
            CorruptStoreError: A file next to the manifest must not be opened.
            StoreError: The folder is gone, or has another index now.
        """
        if self.identity != identity_of(self.folder):
            raise StoreError(
                f"the index that was opened in {str(self.folder.path)!r} is no longer there: "
                "its folder was deleted, moved or replaced; open it again"
            )
        check_files(self.folder)


_manifests: "weakref.WeakSet[Manifest]" = weakref.WeakSet()


def _rest() -> None:
    for manifest in list(_manifests):
        manifest.close_idle()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_rest)

_orphans: list[Connection] = []
"""Connections made before a fork: SQLite forbids the child to use or close them."""


def parse_json(text: Any, what: str) -> Any:
    """JSON from the manifest.

    Raises:
        CorruptStoreError: It is not JSON, or is nested too deep; the message begins with `what`.
    """
    try:
        return json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptStoreError(f"{what} cannot be read: {error}") from error


@contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Turns errors caused by values of a wrong type or size into the error of the store."""
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError, MemoryError) as error:
        raise CorruptStoreError(f"a value in the manifest of {str(path)!r} cannot be used: {error}") from error


def storable(text: str) -> bool:
    """Whether SQLite accepts the text as a parameter and reads all of it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def read_state(rows: Rows) -> State:
    """The state in this transaction."""
    found = rows("SELECT value FROM manifest WHERE name = 'state'")
    if not found:
        raise CorruptStoreError("the manifest has no state")
    return State.parse(found[0][0])


def write_state(connection: sqlite3.Connection, state: State) -> None:
    """Set the state, as part of a write transaction."""
    connection.execute("UPDATE manifest SET value = ? WHERE name = 'state'", (state.dump(),))


def _schema_of(rows: Rows) -> set[tuple[str, str, str]]:
    return {
        (kind, name, " ".join(sql.split()))
        for kind, name, sql in rows("SELECT type, name, coalesce(sql, '') FROM sqlite_master")
    }


def _expected_schema() -> set[tuple[str, str, str]]:
    with closing(sqlite3.connect(":memory:", factory=Connection)) as connection:
        try:
            connection.executescript(_SCHEMA)
        except sqlite3.OperationalError as error:
            raise StoreError(f"this Python's SQLite {sqlite3.sqlite_version} lacks FTS5: {error}") from error
        return _schema_of(connection.rows)
