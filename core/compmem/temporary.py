"""The temporary folders of this process: each is removed with the last store that is open in it."""

import os
import shutil
import tempfile
import weakref
from pathlib import Path

from compmem.locks import Lock

_stores: dict[str, int] = {}
"""Number of open stores in each folder."""
_guard = Lock()


def make_folder() -> Path:
    """A new folder, which is removed with the last store that uses it."""
    path = os.path.abspath(tempfile.mkdtemp(prefix="compmem-"))
    with _guard:
        _stores[path] = 0
    return Path(path)


def discard(path: Path) -> None:
    """Removes such a folder, in which no store could be opened."""
    with _guard:
        _stores.pop(str(path), None)
    shutil.rmtree(path, ignore_errors=True)


def register(store: object, path: Path) -> "weakref.finalize[[str, int], object] | None":
    """A finalizer that releases a folder when the store is closed or collected. None: the folder is not temporary."""
    with _guard:
        if str(path) not in _stores:
            return None
        _stores[str(path)] += 1
    return weakref.finalize(store, _release, str(path), os.getpid())


def _release(path: str, process: int) -> None:
    if process != os.getpid():  # a forked child removes no folder of its parent
        return
    with _guard:
        _stores[path] -= 1
        if _stores[path]:
            return
        del _stores[path]
    shutil.rmtree(path, ignore_errors=True)
