"""Reading: recalled blocks as KV states in front of a prompt.

Each row's memory is padded on the right to the longest, the prompts behind it as well, so that rows whose memories are
equally long need no mask at all. Positions are given, never derived from a mask.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from compmem.backbone.attention import attention
from compmem.backbone.config import Positions
from compmem.backbone.decoder import Context
from compmem.backbone.rotary import Rotary, rotate
from compmem.schema import KVStates


class Prefix:
    """The recalled blocks of each row in order, concatenated layer by layer when they are read.

    Attributes:
        ragged: Whether heads have different numbers of states.
        counts: Positions that the memory of each row takes.
        longest: Slots of the longest row.
    """

    ragged = False

    def __init__(self, rows: Sequence[Sequence[KVStates]], rotary: Rotary, positions: Positions, like: Tensor) -> None:
        # Split now: the gradient of one layer at a time would be as large as that of all layers.
        self._keys = [[states.keys.unbind() for states in row] for row in rows]
        self._values = [[states.values.unbind() for states in row] for row in rows]
        self._rotary = rotary
        self._positions = positions
        self._like = like
        self.counts = list(map(slots_of, rows))
        self.longest = max(self.counts, default=0)

    def layer(self, number: int, heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """Keys at their positions, and values, `[rows, kv_heads, longest, head_dim]` each."""
        keys = self._concatenate(((layers[number] for layers in row) for row in self._keys), heads, head_dim)
        values = self._concatenate(((layers[number] for layers in row) for row in self._values), heads, head_dim)
        if self._positions == "rotated":
            cos, sin = self._rotary(self.longest, keys)
            keys = rotate(keys, cos, sin)
        return keys, values

    def leading_slots(self, number: int) -> int:
        """Number of leading slots, of the longest row, that a layer does not store."""
        return 0

    def occupied(self) -> Tensor:
        """Which slots have a state, `[1 or layers, rows, 1 or kv_heads, longest]`."""
        counts = torch.tensor(self.counts, device=self._like.device)
        return (torch.arange(self.longest, device=counts.device) < counts[:, None])[None, :, None]

    def mask(self, number: int, layout: "Layout") -> Tensor | None:
        """The attention mask of a layer for prompts behind this memory; see `attention`."""
        return layout.mask

    def _concatenate(self, rows: Iterable[Iterable[Tensor]], heads: int, head_dim: int) -> Tensor:
        """The blocks of all rows, each row padded to the longest, copied once."""
        like, pieces = self._like, list[Tensor]()
        for blocks, count in zip(rows, self.counts, strict=True):
            pieces += (states.to(like.device, like.dtype, non_blocking=True) for states in blocks)
            if count < self.longest:
                pieces.append(like.new_zeros(heads, self.longest - count, head_dim))
        return torch.cat(pieces, dim=1).view(heads, len(self.counts), self.longest, head_dim).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Layout:
    """Positions of memory and prompt of every row, in slots and in the sequence."""

    ids: Tensor
    """Prompts padded on the right, `[rows, prompt]`."""
    lengths: Tensor
    """Tokens of each prompt, `[rows]`."""
    positions: Tensor
    """Position of each prompt token, `[rows, prompt]`."""
    mask: Tensor | None
    """The attention mask, `[rows or 1, 1, prompt, slots]`. On a CPU: 0 where a token attends, else minus infinity.
    Elsewhere: True where it attends. None: causal."""
    equal_lengths: bool
    """Whether memory and prompt of all rows are equally long."""

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], counts: Sequence[int], starts: Sequence[int], like: Tensor
    ) -> "Layout":
        """A layout of prompts after memories of `counts` tokens, each from its start on, for weights such as `like`."""
        device = like.device
        width, longest = max(map(len, prompts)), max(counts)
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, prompt in enumerate(prompts):
            ids[row, : len(prompt)] = torch.tensor(prompt, dtype=torch.long)
        memory = torch.tensor(counts)
        first = torch.tensor(starts)
        mask, alike = None, len(set(counts)) == 1
        if not alike or (device.type == "cpu" and longest > width):
            # On a CPU, only an explicit mask lets a short prompt attend to all of a long past; it is made once for all
            # layers.
            causal = torch.ones(width, width, dtype=torch.bool).tril()
            recalled = torch.arange(longest)[None] < (memory[:1] if alike else memory)[:, None]
            mask = torch.cat(
                (recalled[:, None].expand(-1, width, -1), causal[None].expand(len(recalled), -1, -1)), dim=2
            )[:, None].to(device)
            if device.type == "cpu":
                # Converted here, or every layer would do it. For inputs in doubles, the mask must be in doubles too.
                kind = torch.promote_types(like.dtype, torch.float32)
                mask = torch.zeros(mask.shape, dtype=kind).masked_fill(~mask, -torch.inf)
        return cls(
            ids=ids.to(device),
            lengths=torch.tensor([len(prompt) for prompt in prompts], device=device),
            positions=(first[:, None] + torch.arange(width)).to(device),
            mask=mask,
            equal_lengths=alike and len({len(prompt) for prompt in prompts}) == 1,
        )


class PrefixContext(Context):
    """Prompts after their recalled blocks, run once, with gradients if the caller enables them."""

    def __init__(self, prefix: Prefix, layout: Layout, rotary: Rotary) -> None:
        self._prefix = prefix
        self._layout = layout
        self._rotary = rotary
        self._last = int(layout.positions.max()) + 1

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        """Attention of the prompts, each to its row's memory and itself."""
        query, key, value = self.behind(layer, query, key, value)
        mask = self._prefix.mask(layer, self._layout)
        return attention(query, key, value, scale=scale, mask=mask, dropout=dropout)

    def behind(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The prompts' rotated queries; rotated keys, and values, of memory and prompts."""
        query, key = self.rotate_prompts(query, key)
        if self._prefix.longest:
            past_key, past_value = self._prefix.layer(layer, key.shape[1], key.shape[3])
            key, value = torch.cat((past_key, key), dim=2), torch.cat((past_value, value), dim=2)
        return query, key, value

    def rotate_prompts(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys rotated to the prompts' positions."""
        cos, sin = (table[self._layout.positions][:, None] for table in self._rotary(self._last, key))
        return rotate(query, cos, sin), rotate(key, cos, sin)


class StateRecorder(Context):
    """Prompts without a past, to get their states, which a reader then puts in front of a block."""

    def __init__(self, reading: PrefixContext, layers: int, positions: Positions) -> None:
        self._reading = reading
        self._rotate_keys = positions == "unrotated"
        empty = torch.empty(0)
        self.layer_states: list[tuple[Tensor, Tensor]] = [(empty, empty)] * layers
        """Keys and values of each layer, `[rows, kv_heads, prompt, head_dim]`."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        """Attention among the prompt's own tokens; nothing for the last layer, whose output is not used."""
        # If blocks are read without rotation, these keys must be rotated already.
        self.layer_states[layer] = (self._reading.rotate_prompts(query, key)[1] if self._rotate_keys else key, value)
        if layer == len(self.layer_states) - 1:
            return None
        return self._reading.attend(layer, query, key, value, scale=scale, dropout=dropout)

    def states(self, lengths: Sequence[int]) -> list[KVStates]:
        """The states of each prompt, of these tokens each."""
        keys, values = (torch.stack(states) for states in zip(*self.layer_states, strict=True))
        return [
            KVStates(keys=keys[:, row, :, :length], values=values[:, row, :, :length])
            for row, length in enumerate(lengths)
        ]


def slots_of(row: Sequence[KVStates]) -> int:
    """Positions that a row of blocks takes."""
    return sum(states.slots for states in row)


def check_fits_context(
    prompts: Sequence[Sequence[int]], counts: Sequence[int], starts: Sequence[int], new_tokens: int, context: int
) -> None:
    """Refuse prompts that are empty, or do not fit in the context.

    Args:
        prompts: Token ids of each row.
        counts: Memory tokens in front of each.
        starts: Position of the first token of each.
        new_tokens: Tokens that are to be written.
        context: Positions of the model.

    Raises:
        ValueError: A prompt has no tokens or is too long.
    """
    for number, (prompt, count, first) in enumerate(zip(prompts, counts, starts, strict=True)):
        if not prompt:
            raise ValueError(f"prompt {number} has no tokens")
        if first + len(prompt) + new_tokens > context:
            raise ValueError(
                f"prompt {number} of {len(prompt)} tokens, behind {count} memory tokens and with {new_tokens} to "
                f"write, is larger than the context of {context}"
            )


def check_states(rows: Sequence[Sequence[KVStates]], shape: tuple[int, int, int]) -> None:
    """Refuse KV states from another backbone.

    Args:
        rows: The blocks of each row.
        shape: Layers, KV heads and head width of this backbone.

    Raises:
        ValueError: A block has another shape.
    """
    layers, heads, width = shape
    for states in (states for row in rows for states in row):
        if _shape(states) != shape or states.keys.shape != states.values.shape:
            raise ValueError(
                f"KV states of shape {tuple(states.keys.shape)} are of another backbone: "
                f"this one has {layers} layers, {heads} KV heads of {width}"
            )


def _shape(states: KVStates) -> tuple[int, ...]:
    """Layers, KV heads and head width of a block; nothing if it has no such shape."""
    found, lengths = states.keys.shape, states.lengths
    if lengths is None:
        return (*found[:2], found[3]) if len(found) == 4 else ()
    whole = len(found) == 2 and lengths.numel() and int(lengths.min()) > 0 and int(lengths.sum()) == found[0]
    return (*lengths.shape, found[1]) if whole else ()
