"""The folder of an index: names of its files, and how they are opened and removed.

File names are never read from the manifest: they are made from serial numbers. Symbolic links, hard links and files of
other users are refused.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compmem.errors import CorruptStoreError, StoreError

_DATA_FILE = re.compile(r"(?:chunks|sentences|kv)-(\d{6,})\.(?:bin|safetensors)")
_PRIVATE = "new-compmem-"
_LEFT_BY_CREATE = re.compile(rf"writer\.lock|{_PRIVATE}\w+")
_LEFT_BY_SHARDS = re.compile(rf"shard-\d{{3}}|{_PRIVATE}\w+")
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, slots=True)
class Folder:
    """The folder of an index, as an absolute path, so that a change of the working folder does not matter."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(os.path.abspath(self.path)))

    @property
    def manifest(self) -> Path:
        """The SQLite file."""
        return self.path / "manifest.sqlite"

    @property
    def log(self) -> Path:
        """The write-ahead log of the SQLite file."""
        return self.path / "manifest.sqlite-wal"

    @property
    def lock(self) -> Path:
        """The writer's lock file."""
        return self.path / "writer.lock"

    def chunks(self, serial: int) -> Path:
        """The file of whole-chunk vectors."""
        return self.path / f"chunks-{serial:06d}.bin"

    def sentences(self, serial: int) -> Path:
        """The file of sentence vectors."""
        return self.path / f"sentences-{serial:06d}.bin"

    def kv(self, serial: int) -> Path:
        """A segment of KV states."""
        return self.path / f"kv-{serial:06d}.safetensors"

    def has_segments(self) -> bool:
        """Whether it has files of an index beside the manifest."""
        return self.path.is_dir() and any(_DATA_FILE.fullmatch(name) for name in os.listdir(self.path))

    def prepare(self, *, shards: bool = False) -> None:
        """Create the folder, or use an empty one; with `shards`, also one with the first of its shards.

        Raises:
            ValueError: The folder has an index or other files, or the path is a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{str(self.path)!r} is a file; an index is a folder")
        if self.manifest.exists():
            raise ValueError(f"{str(self.path)!r} has an index already: open it, or choose another folder")
        left = _LEFT_BY_SHARDS if shards else _LEFT_BY_CREATE
        if self.path.exists() and any(not left.fullmatch(name) for name in os.listdir(self.path)):
            raise ValueError(f"{str(self.path)!r} is not empty and has no index: choose another folder")
        with os_errors(self.path, "make"):
            missing = [folder for folder in self.path.parents if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (*missing, self.path):
                with suppress(PermissionError):  # a parent folder may not be readable
                    _sync(folder.parent)

    def check_plain(self, file: Path, at_least: int = 0, *, missing: bool = False) -> None:
        """Make sure that a file may be opened and is long enough; with `missing`, it may be absent.

        Raises:
            CorruptStoreError: It is a link, not a plain file, has a hard link, belongs to another user, or is too
                short.
        """
        try:
            found = os.lstat(file)
        except FileNotFoundError:
            if missing:
                return
            raise CorruptStoreError(f"{file.name} is missing from the index {str(self.path)!r}") from None
        self._check(file, found, at_least)

    def open(self, file: Path, at_least: int = 0) -> FileIO:
        """A file to read from, checked after it is opened.

        Raises:
            CorruptStoreError: It may not be opened, or is too short.
        """
        self.check_plain(file, at_least)
        with os_errors(file, "read"):
            return self._open_checked(file, os.O_RDONLY, "rb", at_least)

    def append(self, file: Path, committed: int, rows: NDArray[np.uint8]) -> None:
        """Write bytes after the committed ones and sync; data left there by a crashed writer is overwritten."""
        self.check_plain(file, committed, missing=not committed)
        with os_errors(file, "write"), self._open_checked(file, os.O_RDWR | os.O_CREAT, "r+b", committed) as stream:
            stream.truncate(committed)
            stream.seek(committed)
            data = memoryview(rows.reshape(-1).data)
            try:
                while data:
                    data = data[stream.write(data) :]
                os.fsync(stream.fileno())
            except OSError:
                stream.truncate(committed)
                raise

    @contextmanager
    def placing(self, file: Path) -> Iterator[Path]:
        """A path for a new file, which is synced and moved to its final place at the end of the block.

        The path is in a private folder, so that no other user can plant a link or a journal there.
        """
        with os_errors(file, "write"):
            private = Path(tempfile.mkdtemp(prefix=_PRIVATE, dir=self.path))
            try:
                yield private / file.name
                with (private / file.name).open("rb+") as stream:
                    os.fsync(stream.fileno())
                os.replace(private / file.name, file)
                self.sync()
            finally:
                shutil.rmtree(private, ignore_errors=True)

    def copy_into(self, other: "Folder", file: Path) -> None:
        """Copy a file, if it exists, into another folder and sync it.

        Raises:
            CorruptStoreError: It is a link.
        """
        self.check_plain(file, missing=True)
        if file.exists():
            with self.open(file) as source, other.placing(other.path / file.name) as copy, copy.open("wb") as target:
                shutil.copyfileobj(source, target)

    def sync(self) -> None:
        """Make new file names in the folder durable."""
        _sync(self.path)

    def remove_from(self, serial: int) -> None:
        """Remove the files of a failed transaction: those with this serial and above."""
        for name in os.listdir(self.path):
            found = _DATA_FILE.fullmatch(name)
            if found and int(found[1]) >= serial:
                with os_errors(self.path, "write"):
                    (self.path / name).unlink(missing_ok=True)

    def sweep(self, named: Collection[Path]) -> bool:
        """Remove unlisted vector and KV files, and what a killed writer left; False if some cannot be removed."""
        done = True
        for name in os.listdir(self.path):
            file = self.path / name
            if _DATA_FILE.fullmatch(name) and file not in named:
                try:
                    file.unlink()
                except (PermissionError, IsADirectoryError):  # on Windows, a file that a reader has mapped
                    done = False
        self.remove_private()
        return done

    def remove_private(self) -> None:
        """Remove what killed writers left of files that they were making. The caller has the writer's lock."""
        with os_errors(self.path, "write"):
            private = [name for name in os.listdir(self.path) if name.startswith(_PRIVATE)]
            for file in (self.path / name for name in private):
                if stat.S_ISDIR(os.lstat(file).st_mode):
                    shutil.rmtree(file, ignore_errors=True)
                else:  # not made by a writer; rmtree would wait for ever at a FIFO
                    file.unlink()

    def _open_checked(self, file: Path, flags: int, mode: str, at_least: int) -> FileIO:
        stream = FileIO(os.open(file, flags | _FLAGS, 0o666), mode)
        try:
            self._check(file, os.fstat(stream.fileno()), at_least)
        except BaseException:
            stream.close()
            raise
        return stream

    def _check(self, file: Path, found: os.stat_result, at_least: int) -> None:
        where = f"{file.name} in the index {str(self.path)!r}"
        if not stat.S_ISREG(found.st_mode):
            raise CorruptStoreError(f"{where} is not a plain file")
        if found.st_nlink > 1:
            raise CorruptStoreError(f"{where} has a hard link: copy the folder and use the copy")
        if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), 0, os.stat(self.path).st_uid):
            raise CorruptStoreError(f"{where} belongs neither to you nor to the owner of the folder")
        if found.st_size < at_least:
            raise CorruptStoreError(f"{where} has {found.st_size} bytes, but {at_least} were written")


@contextmanager
def os_errors(file: Path, verb: str) -> Iterator[None]:
    """Turns exceptions of the operating system into the error of the store."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {verb} {str(file)!r}: {error.strerror or error}; nothing has changed") from error


def _sync(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
