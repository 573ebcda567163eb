"""The temporary folders of this process: each goes with the last store that is open in it."""

import os
import shutil
import tempfile
import weakref
from pathlib import Path

from compmem.locks import Lock

_stores: dict[str, int] = {}
"""How many open stores each folder has."""
_guard = Lock()


def make() -> Path:
    """A new folder, which goes with the last store that holds it."""
    path = os.path.abspath(tempfile.mkdtemp(prefix="compmem-"))
    with _guard:
        _stores[path] = 0
    return Path(path)


def hold(store: object, path: Path) -> "weakref.finalize[[str, int], object] | None":
    """What lets go of a folder when the store is closed or collected. None: the folder is not a temporary one."""
    with _guard:
        if str(path) not in _stores:
            return None
        _stores[str(path)] += 1
    return weakref.finalize(store, _let_go, str(path), os.getpid())


def _let_go(path: str, process: int) -> None:
    if process != os.getpid():  # a forked child removes nothing of its parent's
        return
    with _guard:
        _stores[path] -= 1
        if _stores[path]:
            return
        del _stores[path]
    shutil.rmtree(path, ignore_errors=True)
