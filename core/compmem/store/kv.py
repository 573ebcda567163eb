"""KV states on disk: safetensors segments of many blocks, written once and read in slices."""

import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from compmem.config import KVType
from compmem.errors import CorruptStoreError, StoreError
from compmem.locks import Lock
from compmem.schema import KVStates
from compmem.store.folder import Folder

if TYPE_CHECKING:
    import torch

Parts = dict[str, "torch.Tensor"]
"""A block's tensors by name: `keys`, `values`, for int8 `key_scales`, `value_scales`; `positions` where it has them."""

_OPEN_SEGMENTS: Final = 64

_BF16: Final = {"keys": "torch.bfloat16", "values": "torch.bfloat16"}
_INT8: Final = {
    "keys": "torch.int8",
    "values": "torch.int8",
    "key_scales": "torch.float32",
    "value_scales": "torch.float32",
}
"""Type of each tensor of a block, as stored in bf16 and in int8."""


def pack(states: KVStates, kind: KVType) -> Parts:
    """A block's tensors: bf16 as they are, or bytes with a float32 scale a channel.

    Raises:
        ValueError: Keys and values are not of one shape `[layers, kv_heads, memory_tokens, head_dim]`, or not finite,
            or positions are not of its first three dimensions.
    """
    import torch

    keys, values = states.keys.detach().cpu(), states.values.detach().cpu()
    if keys.ndim != 4 or keys.shape != values.shape or not keys.numel():
        raise ValueError(
            f"KV states of shapes {tuple(keys.shape)} and {tuple(values.shape)}, not one of four dimensions"
        )
    if states.positions is not None and states.positions.shape != keys.shape[:3]:
        raise ValueError(f"positions of shape {tuple(states.positions.shape)} for KV states of {tuple(keys.shape)}")
    if not (torch.isfinite(keys).all() and torch.isfinite(values).all()):
        raise ValueError("KV states that are not finite")
    parts = {} if states.positions is None else {"positions": states.positions.detach().cpu().int().contiguous()}
    if kind == "bf16":
        stored = {"keys": keys.to(torch.bfloat16).contiguous(), "values": values.to(torch.bfloat16).contiguous()}
        return parts | stored
    whole_keys, key_scales = _to_bytes(keys)
    whole_values, value_scales = _to_bytes(values)
    parts |= {"keys": whole_keys, "values": whole_values, "key_scales": key_scales, "value_scales": value_scales}
    return parts


def unpack(parts: Parts) -> KVStates:
    """The states in bf16."""
    import torch

    positions = parts.get("positions")
    if "key_scales" not in parts:
        return KVStates(keys=parts["keys"], values=parts["values"], positions=positions)
    return KVStates(
        keys=(parts["keys"].float() * parts["key_scales"]).to(torch.bfloat16),
        values=(parts["values"].float() * parts["value_scales"]).to(torch.bfloat16),
        positions=positions,
    )


def checksum(parts: Parts) -> int:
    """Checksum of a block's tensors."""
    import torch

    crc = 0
    for name in sorted(parts):
        crc = zlib.crc32(parts[name].contiguous().view(torch.uint8).numpy().data, crc)
    return crc


def write_segment(folder: Folder, serial: int, blocks: Mapping[int, Parts]) -> int:
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
        self._open: OrderedDict[int, Any] = OrderedDict()
        self._guard = Lock()

    def read(self, serial: int, number: int, size: int) -> Parts:
        """A block's tensors; only its own bytes are read.

        Raises:
            CorruptStoreError: The segment is missing, truncated or does not contain the block.
        """
        from safetensors import SafetensorError

        segment = self._segment(serial, size)
        try:
            names = [name for name in (*_INT8, "positions") if f"{number}.{name}" in segment[1]]
            parts = {name: segment[0].get_tensor(f"{number}.{name}") for name in names}
        except (SafetensorError, OSError) as error:
            raise CorruptStoreError(f"{self._folder.kv(serial).name} cannot be read: {error}") from error
        kind = _INT8 if "key_scales" in parts else _BF16
        expected = kind | ({"positions": "torch.int32"} if "positions" in parts else {})
        if {name: str(part.dtype) for name, part in parts.items()} != expected:
            raise CorruptStoreError(f"{self._folder.kv(serial).name} does not hold the KV states of block {number}")
        shape = parts["keys"].shape
        placed = parts["positions"].shape if "positions" in parts else shape[:3]
        if len(shape) != 4 or parts["values"].shape != shape or placed != shape[:3]:
            raise CorruptStoreError(f"{self._folder.kv(serial).name} holds block {number} in an impossible shape")
        return parts

    def close(self) -> None:
        """Close the open segments."""
        with self._guard:
            self._open.clear()

    def _segment(self, serial: int, size: int) -> Any:
        from safetensors import SafetensorError, safe_open

        with self._guard:
            if serial in self._open:
                self._open.move_to_end(serial)
                return self._open[serial]
            file = self._folder.kv(serial)
            self._folder.check_plain(file, size)
            try:
                handle: Any = safe_open(file, framework="pt")
                self._open[serial] = (handle, frozenset(handle.keys()))
            except (SafetensorError, OSError) as error:
                raise CorruptStoreError(f"{file.name} in {str(self._folder.path)!r} cannot be read: {error}") from error
            if len(self._open) > _OPEN_SEGMENTS:
                self._open.popitem(last=False)
            return self._open[serial]


def _to_bytes(states: "torch.Tensor") -> tuple["torch.Tensor", "torch.Tensor"]:
    import torch

    scale = states.float().abs().amax(dim=2, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (states.float() / scale).round().to(torch.int8).contiguous(), scale.contiguous()
