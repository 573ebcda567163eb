"""The folder of an index: what its files are called, and how they are opened and removed.

No name is ever read from the manifest: names are made of serial numbers. A link in place of a file, a file that has
another name elsewhere, and a file of a stranger are refused.
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

_OWN = re.compile(r"(?:chunks|sentences|kv)-(\d{6,})\.(?:bin|safetensors)")
_PRIVATE = "new-compmem-"
_LEFT_BY_CREATE = re.compile(rf"writer\.lock|{_PRIVATE}\w+")
_FLAGS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)


@dataclass(frozen=True, slots=True)
class Folder:
    """Where an index lives: an absolute path, so that it stays the same when the working folder changes."""

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

    def prepare(self) -> None:
        """Make the folder, or take an empty one.

        Raises:
            ValueError: There is an index already, something else, or a file.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"{str(self.path)!r} is a file; an index is a folder")
        if self.manifest.exists():
            raise ValueError(f"{str(self.path)!r} holds an index already: open it, or choose another folder")
        if self.path.exists() and any(not _LEFT_BY_CREATE.fullmatch(name) for name in os.listdir(self.path)):
            raise ValueError(f"{str(self.path)!r} is not empty and holds no index: choose another folder")
        with os_errors(self.path, "make"):
            missing = [folder for folder in self.path.parents if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in (*missing, self.path):
                with suppress(PermissionError):  # a parent may be one that nobody may list
                    _sync(folder.parent)

    def check_plain(self, file: Path, at_least: int = 0, *, missing: bool = False) -> None:
        """Make sure that a file may be opened and is long enough; with `missing`, it need not be there.

        Raises:
            CorruptStoreError: It is a link, no plain file, has another name too, is a stranger's, or is too short.
        """
        try:
            found = os.lstat(file)
        except FileNotFoundError:
            if missing:
                return
            raise CorruptStoreError(f"{file.name} is missing from the index {str(self.path)!r}") from None
        self._check(file, found, at_least)

    def open(self, file: Path, at_least: int = 0) -> FileIO:
        """A file to read from, checked once it is open.

        Raises:
            CorruptStoreError: It is none that may be opened, or is too short.
        """
        self.check_plain(file, at_least)
        with os_errors(file, "read"):
            return self._opened(file, os.O_RDONLY, "rb", at_least)

    def append(self, file: Path, committed: int, rows: NDArray[np.uint8]) -> None:
        """Write bytes after the committed ones and sync; what a dead writer left there goes."""
        self.check_plain(file, committed, missing=not committed)
        with os_errors(file, "write"), self._opened(file, os.O_RDWR | os.O_CREAT, "r+b", committed) as stream:
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
        """Where to write a new file; it is synced and moved into its place at the end of the block.

        That is a folder that no one else may enter, so nobody can lay a link or a journal where it is written.
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
        """Copy a file, if it is there, into another folder and sync it.

        Raises:
            CorruptStoreError: It is a link.
        """
        self.check_plain(file, missing=True)
        if file.exists():
            with self.open(file) as source, other.placing(other.path / file.name) as copy, copy.open("wb") as target:
                shutil.copyfileobj(source, target)

    def sync(self) -> None:
        """Make new names in the folder durable."""
        _sync(self.path)

    def remove_from(self, serial: int) -> None:
        """Remove the files a failed transaction has made: those of this serial and above."""
        for name in os.listdir(self.path):
            found = _OWN.fullmatch(name)
            if found and int(found[1]) >= serial:
                (self.path / name).unlink(missing_ok=True)

    def sweep(self, named: Collection[Path]) -> bool:
        """Remove vector and KV files that are not named, and what a killed writer left; False where some cannot go."""
        done = True
        for name in os.listdir(self.path):
            file = self.path / name
            if _OWN.fullmatch(name) and file not in named:
                try:
                    file.unlink()
                except PermissionError:  # Windows keeps files that a reader has mapped
                    done = False
            elif name.startswith(_PRIVATE):
                shutil.rmtree(file, ignore_errors=True)
        return done

    def _opened(self, file: Path, flags: int, mode: str, at_least: int) -> FileIO:
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
            raise CorruptStoreError(f"{where} has another name too (a hard link): copy the folder and use the copy")
        if hasattr(os, "geteuid") and found.st_uid not in (os.geteuid(), 0, os.stat(self.path).st_uid):
            raise CorruptStoreError(f"{where} belongs neither to you nor to the owner of the folder")
        if found.st_size < at_least:
            raise CorruptStoreError(f"{where} has {found.st_size} bytes, {at_least} were written")


@contextmanager
def os_errors(file: Path, verb: str) -> Iterator[None]:
    """Turns what the operating system raises into the error of the store."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {verb} {str(file)!r}: {error.strerror or error}; the index is as it was") from error


def _sync(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
