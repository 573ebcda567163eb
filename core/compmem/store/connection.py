"""Connections to the SQLite file of an index: opening, checks before opening, and error handling."""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from compmem.errors import CorruptStoreError, StoreError, StoreLockedError
from compmem.store.folder import Folder

_BUSY_SECONDS: Final = 10.0
_STEPS: Final = 1_000_000
"""Steps of SQLite's virtual machine between two checks of a query's work."""
_FREE_STEPS: Final = 100_000_000
"""Steps that any query may take, some seconds."""
_STEPS_PER_BYTE: Final = 100
_FETCHED_ROWS: Final = 65_536
"""Rows that are fetched at once."""
_ENDLESS: Final = "the manifest is damaged: a query has more rows or takes longer than a file of this size allows"


class Connection(sqlite3.Connection):
    """A connection to an untrusted file: pages that refer to one another can make a table of a small file endless."""

    files: Sequence[Path] = ()
    """The database and its log; none if it is in memory."""

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """All rows of a query.

        Raises:
            CorruptStoreError: There are more rows, or they take more steps, than files of this size can hold.
        """
        steps = 0

        def takes_too_long() -> bool:
            nonlocal steps
            steps += _STEPS
            return steps > _FREE_STEPS + _STEPS_PER_BYTE * self._bytes()

        found = list[tuple[Any, ...]]()
        self.set_progress_handler(takes_too_long, _STEPS)
        try:
            cursor = self.execute(sql, parameters)
            while more := cursor.fetchmany(_FETCHED_ROWS):
                found += more
                # One byte of the lexical index may be a row.
                if len(found) > max(_FETCHED_ROWS, self._bytes()):
                    raise CorruptStoreError(_ENDLESS)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                raise CorruptStoreError(_ENDLESS) from error
            raise
        finally:
            self.set_progress_handler(None, 0)
        return found

    def _bytes(self) -> int:
        return sum(map(size_of, self.files))


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turns SQLite's exceptions into errors of the store."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)  # errors raised by Python's sqlite3 module have none
        kind = None if code is None else code & 0xFF
        where = f"the index {str(path)!r}"
        if kind in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise StoreLockedError(f"{where} is being written by another process") from error
        if kind == sqlite3.SQLITE_FULL:
            raise StoreError(f"cannot write {where}: the disk is full; nothing has changed") from error
        if kind == sqlite3.SQLITE_IOERR:
            raise StoreError(f"cannot read or write {where}: {error}; nothing has changed") from error
        if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            raise StoreError(f"cannot open {where} for this: {error}") from error
        if kind in (sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_INTERRUPT):
            raise StoreError(f"{where} cannot do this: {error}; nothing has changed") from error
        raise CorruptStoreError(f"the manifest of {where} cannot be used: {error}") from error


def connect(file: Path, mode: str) -> Connection:
    """A connection with settings for an untrusted folder; `mode` is "ro", "rw" or "immutable"."""
    query = "mode=ro&immutable=1" if mode == "immutable" else f"mode={mode}"
    connection = sqlite3.connect(
        f"{file.absolute().as_uri()}?{query}",
        uri=True,
        isolation_level=None,
        timeout=_BUSY_SECONDS,
        check_same_thread=False,
        cached_statements=256,
        factory=Connection,
    )
    connection.files = (file, file.with_name(f"{file.name}-wal"))
    try:
        for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "cache_size=-16384", "secure_delete=OFF"):
            connection.execute(f"PRAGMA {pragma}")
        # A temporary table, not in the file: every occurrence of a term, for counts under a filter.
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute("CREATE VIRTUAL TABLE temp.occurrences USING fts5vocab(main, lexical, instance)")
    except BaseException:
        connection.close()
        raise
    return connection


def identity_of(folder: Folder) -> tuple[int, int] | None:
    """Device and inode of the manifest; None if there is none."""
    try:
        found = os.lstat(folder.manifest)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def check_files(folder: Folder) -> None:
    """Refuse a folder in which SQLite would open a file that does not belong to it.

    Raises:
        CorruptStoreError: There is a link, a special file, or a rollback journal.
    """
    folder.check_plain(folder.manifest)
    for end in ("-wal", "-shm"):
        folder.check_plain(folder.path / f"manifest.sqlite{end}", missing=True)
    journal = folder.path / "manifest.sqlite-journal"
    if os.path.lexists(journal):  # SQLite would replay it, and delete the file that it names
        raise CorruptStoreError(
            f"{str(journal)!r} does not belong to this index, which has a write-ahead log: remove it"
        )


def size_of(file: Path) -> int:
    """Bytes of a file; 0 if it does not exist."""
    try:
        return os.lstat(file).st_size
    except OSError:
        return 0


def cut_log(connection: sqlite3.Connection) -> None:
    """Copy the log into the database and truncate it, unless a reader would have to wait."""
    with suppress(sqlite3.Error):
        connection.execute("PRAGMA busy_timeout=0")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def shorten(folder: Folder, process: int, identity: tuple[int, int] | None) -> None:
    """Truncate the log of an index that was written to, when it is closed."""
    if process == os.getpid() and identity == identity_of(folder):
        with suppress(StoreError, sqlite3.Error):
            check_files(folder)
            with closing(connect(folder.manifest, "rw")) as connection:
                cut_log(connection)


def mode_of(folder: Folder) -> str:
    """The mode in which readers open the manifest: never for writing, since SQLite would replay a planted journal."""
    try:
        with errors(folder.path), closing(connect(folder.manifest, "ro")) as connection:
            connection.execute("SELECT 1 FROM manifest LIMIT 1").fetchall()
    except CorruptStoreError:
        raise
    except StoreError as error:
        if os.access(folder.path, os.W_OK) and os.access(folder.manifest, os.W_OK):
            raise  # file permissions are not the reason
        if size_of(folder.log):
            raise StoreError(
                f"{str(folder.path)!r} is read-only and was not closed: open it once with write rights"
            ) from error
        return "immutable"
    return "ro"


def stamp_of(folder: Folder) -> tuple[int, int, bool]:
    """Time and size of the manifest, and whether there is a log; they change with every write."""
    found = folder.manifest.stat()
    return found.st_mtime_ns, found.st_size, folder.log.exists()
