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
"""A block's tensors by name: `keys`, `values`, for int8 `key_scales`, `value_scales`; where it has them `positions` and
`lengths`."""

_OPEN_SEGMENTS: Final = 64

_BF16: Final = {"keys": "torch.bfloat16", "values": "torch.bfloat16"}
_INT8: Final = {
    "keys": "torch.int8",
    "values": "torch.int8",
    "key_scales": "torch.float32",
    "value_scales": "torch.float32",
}
"""Type of each tensor of a block, as stored in bf16 and in int8."""
_PLACES: Final = {"positions": "torch.int32", "lengths": "torch.int32"}
"""Type of those that not every block has."""


def pack(states: KVStates, kind: KVType) -> Parts:
    """A block's tensors: bf16 as they are, or bytes with a float32 scale a channel.

    Raises:
        ValueError: Keys and values are not of one shape, that of `KVStates`, or not finite, or positions or lengths do
            not fit them.
    """
    import torch

    keys, values = states.keys.detach().cpu(), states.values.detach().cpu()
    places = {"positions": states.positions, "lengths": states.lengths}
    parts = {name: part.detach().cpu().int().contiguous() for name, part in places.items() if part is not None}
    positions, lengths = parts.get("positions"), parts.get("lengths")
    dimensions = 4 if lengths is None else 2
    if keys.ndim != dimensions or keys.shape != values.shape or not keys.numel():
        shapes = f"{tuple(keys.shape)} and {tuple(values.shape)}"
        raise ValueError(f"KV states of shapes {shapes}, not one of {dimensions} dimensions")
    if lengths is not None and not _ordered(lengths, positions, len(keys)):
        raise ValueError(f"lengths that do not fit {len(keys)} KV states, or positions that do not ascend in each head")
    if lengths is None and positions is not None and positions.shape != keys.shape[:3]:
        raise ValueError(f"positions of shape {tuple(positions.shape)} for KV states of {tuple(keys.shape)}")
    if not (torch.isfinite(keys).all() and torch.isfinite(values).all()):
        raise ValueError("KV states that are not finite")
    if kind == "bf16":
        stored = {"keys": keys.to(torch.bfloat16).contiguous(), "values": values.to(torch.bfloat16).contiguous()}
        return parts | stored
    whole_keys, key_scales = _to_bytes(keys, lengths)
    whole_values, value_scales = _to_bytes(values, lengths)
    parts |= {"keys": whole_keys, "values": whole_values, "key_scales": key_scales, "value_scales": value_scales}
    return parts


def unpack(parts: Parts) -> KVStates:
    """The states in bf16."""
    import torch

    keys, values, positions, lengths = parts["keys"], parts["values"], parts.get("positions"), parts.get("lengths")
    if "key_scales" in parts:
        keys = (keys.float() * _for_each(parts["key_scales"], lengths)).to(torch.bfloat16)
        values = (values.float() * _for_each(parts["value_scales"], lengths)).to(torch.bfloat16)
    return KVStates(keys=keys, values=values, positions=positions, lengths=lengths)


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
            names = [name for name in (*_INT8, *_PLACES) if f"{number}.{name}" in segment[1]]
            parts = {name: segment[0].get_tensor(f"{number}.{name}") for name in names}
        except (SafetensorError, OSError) as error:
            raise CorruptStoreError(f"{self._folder.kv(serial).name} cannot be read: {error}") from error
        kind = _INT8 if "key_scales" in parts else _BF16
        expected = kind | {name: dtype for name, dtype in _PLACES.items() if name in parts}
        if {name: str(part.dtype) for name, part in parts.items()} != expected:
            raise CorruptStoreError(f"{self._folder.kv(serial).name} does not hold the KV states of block {number}")
        if not _possible(parts):
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


def _possible(parts: Parts) -> bool:
    """Whether the shapes of a block's tensors belong together."""
    keys, positions, lengths = parts["keys"], parts.get("positions"), parts.get("lengths")
    if lengths is None:
        whole = keys.ndim == 4 and (positions is None or positions.shape == keys.shape[:3])
    else:
        whole = keys.ndim == 2 and _ordered(lengths, positions, len(keys))
    if not whole or parts["values"].shape != keys.shape:
        return False
    scales = (*(keys.shape[:2] if lengths is None else lengths.shape), 1, keys.shape[-1])
    return all(parts[name].shape == scales for name in ("key_scales", "value_scales") if name in parts)


def _ordered(lengths: "torch.Tensor", positions: "torch.Tensor | None", states: int) -> bool:
    """Whether lengths `[layers, kv_heads]` divide so many states, and the positions ascend in each head."""
    if lengths.ndim != 2 or not lengths.numel() or int(lengths.min()) < 1 or int(lengths.sum()) != states:
        return False
    if positions is None or positions.shape != (states,) or int(positions.min()) < 0:
        return False
    ascends = positions.diff() > 0
    ascends[lengths.flatten().long().cumsum(0)[:-1] - 1] = True  # from one head to the next
    return bool(ascends.all())


def _to_bytes(states: "torch.Tensor", lengths: "torch.Tensor | None") -> tuple["torch.Tensor", "torch.Tensor"]:
    """States in bytes, and the scale of each channel of each head, `[layers, kv_heads, 1, head_dim]`."""
    import torch

    size = states.float().abs()
    if lengths is None:
        scale = size.amax(dim=2, keepdim=True) / 127
    else:
        most = torch.stack([states.amax(dim=0) for states in torch.split(size, lengths.flatten().tolist())])
        scale = most.view(*lengths.shape, 1, -1) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (states.float() / _for_each(scale, lengths)).round().to(torch.int8).contiguous(), scale.contiguous()


def _for_each(scales: "torch.Tensor", lengths: "torch.Tensor | None") -> "torch.Tensor":
    """The scales of the head of each state."""
    return scales if lengths is None else scales.flatten(0, 2).repeat_interleave(lengths.flatten(), dim=0)
