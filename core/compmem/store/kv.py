"""KV states on disk: safetensors segments of many blocks, written once and read in slices."""

from collections.abc import Mapping
from typing import Any, Final

from cachetools import LRUCache

from compmem.errors import CorruptStoreError, StoreError
from compmem.kv_format import TENSOR_NAMES, KVTensors, have_known_types, shapes_fit
from compmem.locks import Lock
from compmem.store.folder import Folder

_OPEN_SEGMENTS: Final = 64


def write_segment(folder: Folder, serial: int, blocks: Mapping[int, KVTensors]) -> int:
    """Write the tensors of blocks by number as a new segment and sync it; returns its size in bytes.

    Raises:
        StoreError: It could not be written; the file is removed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = folder.kv(serial)
    tensors = {f"{number}.{name}": tensor for number, parts in blocks.items() for name, tensor in parts.items()}
    try:
        with folder.placing(file) as new:
            save_file(tensors, new)
    except SafetensorError as error:
        raise StoreError(f"cannot write {str(file)!r}: {error}; nothing has changed") from error
    return file.stat().st_size


class KVSegments:
    """The segments of a folder, opened on first use; the last few stay open."""

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._open: LRUCache[int, Any] = LRUCache(_OPEN_SEGMENTS)
        self._guard = Lock()

    def read(self, serial: int, number: int, size: int) -> KVTensors:
        """A block's tensors; only its own bytes are read.

        Raises:
            CorruptStoreError: The segment is missing, truncated or does not contain the block.
        """
        from safetensors import SafetensorError

        segment = self._segment(serial, size)
        try:
            names = [name for name in TENSOR_NAMES if f"{number}.{name}" in segment[1]]
            tensors = {name: segment[0].get_tensor(f"{number}.{name}") for name in names}
        except (SafetensorError, OSError) as error:
            raise CorruptStoreError(f"{self._folder.kv(serial).name} cannot be read: {error}") from error
        if not have_known_types(tensors):
            raise CorruptStoreError(f"{self._folder.kv(serial).name} does not hold the KV states of block {number}")
        if not shapes_fit(tensors):
            raise CorruptStoreError(f"{self._folder.kv(serial).name} holds block {number} in an impossible shape")
        return tensors

    def close(self) -> None:
        """Close the open segments."""
        with self._guard:
            self._open.clear()

    def _segment(self, serial: int, size: int) -> Any:
        from safetensors import SafetensorError, safe_open

        with self._guard:
            if (known := self._open.get(serial)) is not None:
                return known
            file = self._folder.kv(serial)
            self._folder.check_plain(file, size)
            try:
                handle: Any = safe_open(file, framework="pt")
                opened = self._open[serial] = (handle, frozenset(handle.keys()))
            except (SafetensorError, OSError) as error:
                raise CorruptStoreError(f"{file.name} in {str(self._folder.path)!r} cannot be read: {error}") from error
            return opened
