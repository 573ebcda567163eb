"""The folder of an index: what its files are called, and how they are opened and removed.

No name is ever read from the manifest: names are made of serial numbers, and a link in place of a file is refused.
"""

import os
import re
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from compmem.errors import CorruptStoreError, StoreError

_OWN = re.compile(r"(?:chunks|sentences|kv)-(\d{6,})\.(?:bin|safetensors)")
_LEFT_BY_CREATE = re.compile(r"writer\.lock|manifest\.sqlite\.new(?:-\w+)?")


@dataclass(frozen=True, slots=True)
class Folder:
    """Where an index lives."""

    path: Path

    @property
    def manifest(self) -> Path:
        """The SQLite file."""
        return self.path / "manifest.sqlite"

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
            self.path.mkdir(parents=True, exist_ok=True)

    def check_plain(self, file: Path, at_least: int = 0, *, missing: bool = False) -> None:
        """Make sure that a file is no link and is long enough; with `missing`, it need not be there.

        Raises:
            CorruptStoreError: It is not.
        """
        try:
            found = os.lstat(file)
        except FileNotFoundError:
            if missing:
                return
            raise CorruptStoreError(f"{file.name} is missing from the index {str(self.path)!r}") from None
        if not stat.S_ISREG(found.st_mode):
            raise CorruptStoreError(f"{file.name} in the index {str(self.path)!r} is not a plain file")
        if found.st_size < at_least:
            raise CorruptStoreError(
                f"{file.name} in the index {str(self.path)!r} has {found.st_size} bytes, {at_least} were written"
            )

    def append(self, file: Path, committed: int, rows: NDArray[np.uint8]) -> None:
        """Write bytes after the committed ones and sync; what a dead writer left there goes."""
        with os_errors(file, "write"), _open_to_write(file) as stream:
            if os.fstat(stream.fileno()).st_size < committed:
                raise CorruptStoreError(f"{file.name} in the index {str(self.path)!r} is shorter than it was")
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

    def copy_into(self, other: "Folder", file: Path) -> None:
        """Copy a file, if it is there, into another folder and sync it.

        Raises:
            CorruptStoreError: It is a link.
        """
        self.check_plain(file, missing=True)
        if file.exists():
            copy = shutil.copyfile(file, other.path / file.name)
            with open(copy, "rb+") as stream:
                os.fsync(stream.fileno())

    def sync(self) -> None:
        """Make new names in the folder durable."""
        if os.name == "posix":
            handle = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)

    def remove_from(self, serial: int) -> None:
        """Remove the files a failed transaction has made: those of this serial and above."""
        for name in os.listdir(self.path):
            found = _OWN.fullmatch(name)
            if found and int(found[1]) >= serial:
                (self.path / name).unlink(missing_ok=True)

    def sweep(self, named: Collection[Path]) -> bool:
        """Remove vector and KV files that are not named; False where some could not go yet."""
        done = True
        for name in os.listdir(self.path):
            file = self.path / name
            if _OWN.fullmatch(name) and file not in named:
                try:
                    file.unlink()
                except PermissionError:  # Windows keeps files that a reader has mapped
                    done = False
        return done


@contextmanager
def os_errors(file: Path, verb: str) -> Iterator[None]:
    """Turns what the operating system raises into the error of the store."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"cannot {verb} {str(file)!r}: {error.strerror or error}; the index is as it was") from error


def _open_to_write(file: Path) -> FileIO:
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return FileIO(os.open(file, flags, 0o666), "r+b")
