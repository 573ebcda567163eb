"""KV states as the tensors of a file: in bf16, in 8 bits, or in 4 bits.

8 bits: each channel of a head has one scale. 4 bits, as in KIVI (arXiv 2402.02750): keys have a scale and a least value
for each channel of a group of states of a head, since the same few channels of keys are large in all states; values
have them for each state.
"""

import zlib
from typing import TYPE_CHECKING, Final

from compmem.config import KVType
from compmem.schema import KVStates

if TYPE_CHECKING:
    import torch

KVTensors = dict[str, "torch.Tensor"]
"""A block's tensors by name: `keys`, `values`, for 8 and 4 bits `key_scales`, `value_scales`; where it has them
`positions` and `lengths`."""

KEY_GROUP_STATES: Final = 64
"""Maximum number of states of a head that share the scales of their keys in 4 bits."""

_LEVELS: Final = 15

_TYPES: Final = {
    "bf16": {"keys": "torch.bfloat16", "values": "torch.bfloat16"},
    "int8": {
        "keys": "torch.int8", "values": "torch.int8", "key_scales": "torch.float32", "value_scales": "torch.float32",
    },
    "int4": {
        "keys": "torch.uint8", "values": "torch.uint8", "key_scales": "torch.float16", "value_scales": "torch.float16",
    },
}  # fmt: skip
"""Type of each tensor of a block."""
_OPTIONAL_TYPES: Final = {"positions": "torch.int32", "lengths": "torch.int32"}
"""Types of the optional tensors."""

TENSOR_NAMES: Final = (*_TYPES["int8"], *_OPTIONAL_TYPES)
"""Names of all tensors that a block may have."""


def pack(states: KVStates, kind: KVType) -> KVTensors:
    """A block's tensors.

    In 4 bits, two channels of a state share a byte: the even one is its lower half, the next one its upper half.

    Raises:
        ValueError: Keys and values are not of one shape, that of `KVStates`, or not finite, positions or lengths do not
            fit them, or there are 4 bits for an odd number of channels.
    """
    import torch

    keys, values = states.keys.detach().cpu(), states.values.detach().cpu()
    optional = {"positions": states.positions, "lengths": states.lengths}
    tensors = {
        name: tensor.detach().cpu().int().contiguous() for name, tensor in optional.items() if tensor is not None
    }
    positions, lengths = tensors.get("positions"), tensors.get("lengths")
    _check_states(keys, values, positions, lengths)
    if kind == "int4" and keys.shape[-1] % 2:
        raise ValueError(f"kv='int4' needs an even number of channels, not {keys.shape[-1]}")
    if kind == "bf16":
        stored = {"keys": keys.to(torch.bfloat16).contiguous(), "values": values.to(torch.bfloat16).contiguous()}
        return tensors | stored
    heads = _states_per_head(keys, lengths)
    if kind == "int8":
        shape = _byte_scales(keys, lengths)
        tensors["keys"], tensors["key_scales"] = _quantize_int8(keys, heads, shape)
        tensors["values"], tensors["value_scales"] = _quantize_int8(values, heads, shape)
    else:
        tensors["keys"], tensors["key_scales"] = _quantize_int4(keys, _group_sizes(heads))
        tensors["values"], tensors["value_scales"] = _quantize_int4(values, None)
    return tensors


def unpack(tensors: KVTensors) -> KVStates:
    """The states in bf16."""
    import torch

    optional = {"positions": tensors.get("positions"), "lengths": tensors.get("lengths")}
    if "key_scales" not in tensors:
        return KVStates(keys=tensors["keys"], values=tensors["values"], **optional)
    keys, values, heads = tensors["keys"], tensors["values"], _states_per_head(tensors["keys"], optional["lengths"])
    if keys.dtype == torch.int8:
        keys, values = (
            _dequantize_int8(tensors[f"{name}s"], tensors[f"{name}_scales"], heads) for name in ("key", "value")
        )
    else:
        keys = _dequantize_int4(keys, tensors["key_scales"], _group_sizes(heads))
        values = _dequantize_int4(values, tensors["value_scales"], None)
    return KVStates(keys=keys.to(torch.bfloat16), values=values.to(torch.bfloat16), **optional)


def checksum(tensors: KVTensors) -> int:
    """Checksum of a block's tensors."""
    import torch

    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].contiguous().view(torch.uint8).numpy().data, crc)
    return crc


def have_known_types(tensors: KVTensors) -> bool:
    """Whether tensors from a file have the types of one of the formats."""
    optional = {name: dtype for name, dtype in _OPTIONAL_TYPES.items() if name in tensors}
    found = {name: str(tensor.dtype) for name, tensor in tensors.items()}
    return any(found == types | optional for types in _TYPES.values())


def shapes_fit(tensors: KVTensors) -> bool:
    """Whether the shapes of a block's tensors belong together."""
    keys, positions, lengths = tensors["keys"], tensors.get("positions"), tensors.get("lengths")
    if lengths is None:
        whole = keys.ndim == 4 and (positions is None or positions.shape == keys.shape[:3])
    else:
        whole = keys.ndim == 2 and _positions_ascend(lengths, positions, len(keys))
    if not whole or not keys.numel() or tensors["values"].shape != keys.shape:
        return False
    if "key_scales" not in tensors:
        return True
    if str(keys.dtype) == "torch.int8":
        return tensors["key_scales"].shape == _byte_scales(keys, lengths) == tensors["value_scales"].shape
    heads, channels = _states_per_head(keys, lengths), 2 * keys.shape[-1]
    return (
        tensors["key_scales"].shape == (len(_group_sizes(heads)), 2, channels)
        and tensors["value_scales"].shape == (sum(heads), 2, 1)
    )  # fmt: skip


def _check_states(
    keys: "torch.Tensor", values: "torch.Tensor", positions: "torch.Tensor | None", lengths: "torch.Tensor | None"
) -> None:
    """Refuse states that are not of one shape or not finite, or that positions or lengths do not fit."""
    import torch

    dimensions = 4 if lengths is None else 2
    if keys.ndim != dimensions or keys.shape != values.shape or not keys.numel():
        shapes = f"{tuple(keys.shape)} and {tuple(values.shape)}"
        raise ValueError(f"KV states of shapes {shapes}, not one of {dimensions} dimensions")
    if lengths is not None and not _positions_ascend(lengths, positions, len(keys)):
        raise ValueError(f"lengths that do not fit {len(keys)} KV states, or positions that do not ascend in each head")
    if lengths is None and positions is not None and positions.shape != keys.shape[:3]:
        raise ValueError(f"positions of shape {tuple(positions.shape)} for KV states of {tuple(keys.shape)}")
    if not (torch.isfinite(keys).all() and torch.isfinite(values).all()):
        raise ValueError("KV states that are not finite")


def _states_per_head(states: "torch.Tensor", lengths: "torch.Tensor | None") -> list[int]:
    """How many states each head has."""
    return [states.shape[2]] * states.shape[:2].numel() if lengths is None else lengths.flatten().tolist()


def _group_sizes(heads: list[int]) -> list[int]:
    """How many states each group of a head has."""
    return [min(KEY_GROUP_STATES, size - at) for size in heads for at in range(0, size, KEY_GROUP_STATES)]


def _byte_scales(states: "torch.Tensor", lengths: "torch.Tensor | None") -> tuple[int, ...]:
    """The shape of the scales in 8 bits, `[layers, kv_heads, 1, head_dim]`."""
    return (*(states.shape[:2] if lengths is None else lengths.shape), 1, states.shape[-1])


def _quantize_int8(
    states: "torch.Tensor", heads: list[int], shape: tuple[int, ...]
) -> tuple["torch.Tensor", "torch.Tensor"]:  # fmt: skip
    """States in bytes, and the scale of each channel of each head, of this shape."""
    import torch

    flat = states.float().flatten(0, -2)
    scale = torch.stack([head.amax(dim=0) for head in torch.split(flat.abs(), heads)]) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    whole = (flat / _expand(scale, heads)).round().to(torch.int8)
    return whole.view(states.shape), scale.view(shape)


def _dequantize_int8(whole: "torch.Tensor", scales: "torch.Tensor", heads: list[int]) -> "torch.Tensor":
    return (whole.flatten(0, -2).float() * _expand(scales.flatten(0, -2), heads)).view(whole.shape)


def _quantize_int4(states: "torch.Tensor", groups: list[int] | None) -> tuple["torch.Tensor", "torch.Tensor"]:
    """States in half bytes, `[..., head_dim / 2]`, and scales and least values.

    Args:
        states: Keys or values.
        groups: How many states share the scale of a channel; then scales are `[groups, 2, head_dim]`. None: the
            channels of a state share one, and they are `[states, 2, 1]`.
    """
    import torch

    flat = states.float().flatten(0, -2)
    if groups is None:
        least, most = flat.aminmax(dim=-1, keepdim=True)
    else:
        ends = [group.aminmax(dim=0) for group in torch.split(flat, groups)]
        least, most = torch.stack([end.min for end in ends]), torch.stack([end.max for end in ends])
    largest = torch.finfo(torch.float16).max
    scales = torch.stack([(most - least) / _LEVELS, least], dim=1).clamp(-largest, largest).half()
    scales[:, 0].masked_fill_(scales[:, 0] == 0, 1)
    scale, least = (_expand(tensor, groups) for tensor in scales.float().unbind(dim=1))
    whole = ((flat - least) / scale).round().clamp(0, _LEVELS).to(torch.uint8)
    return (whole[:, 0::2] | whole[:, 1::2] << 4).view(*states.shape[:-1], -1), scales


def _dequantize_int4(halves: "torch.Tensor", scales: "torch.Tensor", groups: list[int] | None) -> "torch.Tensor":
    import torch

    flat = halves.flatten(0, -2)
    whole = torch.stack([flat & _LEVELS, flat >> 4], dim=-1).flatten(1).float()
    scale, least = (_expand(tensor, groups) for tensor in scales.float().unbind(dim=1))
    return (whole * scale + least).view(*halves.shape[:-1], -1)


def _expand(scales: "torch.Tensor", groups: list[int] | None) -> "torch.Tensor":
    """The scales of the group of each state; None: each state is one."""
    import torch

    return scales if groups is None else scales.repeat_interleave(torch.tensor(groups), dim=0)


def _positions_ascend(lengths: "torch.Tensor", positions: "torch.Tensor | None", states: int) -> bool:
    """Whether lengths `[layers, kv_heads]` divide so many states, and the positions ascend in each head."""
    if lengths.ndim != 2 or not lengths.numel() or int(lengths.min()) < 1 or int(lengths.sum()) != states:
        return False
    if positions is None or positions.shape != (states,) or int(positions.min()) < 0:
        return False
    ascends = positions.diff() > 0
    ascends[lengths.flatten().long().cumsum(0)[:-1] - 1] = True  # from one head to the next
    return bool(ascends.all())
