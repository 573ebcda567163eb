"""An index that was unpacked into a temporary folder, which is removed with its last copy in this process."""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from compmem import MemoryIndex
from compmem.locks import Lock

_open: dict[str, int] = {}
"""Number of open indexes in each folder that this process made."""
_guard = Lock()


class UnpackedIndex(MemoryIndex):
    """An index in a temporary folder. Copies of it, as of engines and retrievers, open the same folder."""

    _release: Callable[[], object]

    @classmethod
    def unpack(cls, files: Mapping[str, bytes], **options: Any) -> Self:
        """The index in these files; the options are those of `open`.

        Raises:
            StoreError: They are not an index, or a damaged one.
        """
        folder = Path(tempfile.mkdtemp(prefix="compmem-")).absolute()
        with _guard:
            _open[str(folder)] = 0
        try:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            return cls.open(folder, **options)
        except BaseException:
            _remove(str(folder))
            raise

    @classmethod
    def open(cls, path: str | Path, **options: Any) -> Self:
        """The index in such a folder; see `MemoryIndex.open`."""
        index = super().open(path, **options)
        with _guard:
            known = str(path) in _open  # not in the process that a copy was sent to
            if known:
                _open[str(path)] += 1
        index._release = weakref.finalize(index, _closed, str(path), os.getpid()) if known else lambda: None
        return index

    @property
    def temporary(self) -> bool:
        """Whether the folder is removed when the index is closed: it is."""
        return True

    def close(self) -> None:
        """Closes files; the folder is removed with the last copy of the index."""
        super().close()
        self._release()

    def __reduce__(self) -> tuple[Callable[..., MemoryIndex], tuple[Any, ...]]:
        function, (_, *others) = super().__reduce__()
        return function, (UnpackedIndex.open, *others)


def _closed(folder: str, process: int) -> None:
    if process != os.getpid():  # a forked child removes no folder of its parent
        return
    with _guard:
        _open[folder] -= 1
        last = not _open[folder]
    if last:
        _remove(folder)


def _remove(folder: str) -> None:
    with _guard:
        _open.pop(folder, None)
    shutil.rmtree(folder, ignore_errors=True)
