"""Blocks joined to one text, layer by layer, to compute the states of some of its tokens again.

A head has a state for each token that it was not pruned of. In a layer, the heads are padded to the longest.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from compmem.backbone.ragged import head_lengths
from compmem.schema import KVStates


@dataclass(frozen=True, slots=True)
class LayerStates:
    """States of one layer."""

    keys: Tensor
    """`[kv_heads, slots, head_dim]`, before rotation."""
    values: Tensor
    """As `keys`."""
    positions: Tensor
    """Position in the text of the token that each slot is of, `[kv_heads, slots]`; -1 for padding."""


@dataclass(frozen=True, slots=True)
class JoinedBlocks:
    """Blocks one after the other, and the text that they stand for."""

    layers: Sequence[LayerStates]
    ids: Tensor
    """The text, `[tokens]`."""
    starts: tuple[int, ...]
    """Position of the first token of each block."""

    @classmethod
    def of(cls, blocks: Sequence[KVStates], texts: Sequence[Sequence[int]], like: Tensor) -> "JoinedBlocks":
        """Blocks with the token ids of their texts, on device and in type of `like`.

        Raises:
            ValueError: A block does not belong to its text.
        """
        starts = tuple(accumulate(map(len, texts[:-1]), initial=0))
        parts = [_by_head(*block, like) for block in zip(blocks, starts, texts, strict=True)]
        heads = [tuple(map(torch.cat, zip(*own, strict=True))) for own in zip(*parts, strict=True)]
        each = head_lengths(blocks[0]).shape[1]
        return cls(
            layers=[_padded(heads[first : first + each]) for first in range(0, len(heads), each)],
            ids=torch.tensor([i for text in texts for i in text], device=like.device),
            starts=starts,
        )

    def with_states(self, chosen: Tensor, made: Iterable[tuple[Tensor, Tensor]], *, all_heads: bool) -> list[KVStates]:
        """The blocks with new states of some tokens.

        Args:
            chosen: Positions of the tokens, `[chosen]`, ascending.
            made: Of each layer keys and values `[kv_heads, chosen, head_dim]`.
            all_heads: Whether the new states are also kept in heads that were pruned of their tokens.
        """
        layers = [
            _replace_states(old, chosen, *new, len(self.ids), all_heads)
            for old, new in zip(self.layers, made, strict=True)
        ]  # fmt: skip
        return [_block(layers, start, stop) for start, stop in pairwise((*self.starts, len(self.ids)))]


def _by_head(states: KVStates, start: int, text: Sequence[int], like: Tensor) -> list[tuple[Tensor, ...]]:
    """Keys, values and positions of each head of all layers."""
    sizes = head_lengths(states).flatten().tolist()
    flat = (
        states.keys.to(like.device, like.dtype).flatten(0, -2),
        states.values.to(like.device, like.dtype).flatten(0, -2),
        start + _positions(states, len(text)).to(like.device).flatten(),
    )
    return list(zip(*(torch.split(tensor, sizes) for tensor in flat), strict=True))


def _positions(states: KVStates, tokens: int) -> Tensor:
    """The position within its text of every state of a block."""
    shape = states.keys.shape[:-1]
    if states.positions is None:
        if shape[-1] != tokens:
            raise ValueError(f"a block has {shape[-1]} states for {tokens} tokens, and no positions")
        return torch.arange(tokens).expand(shape)
    if states.positions.shape != shape or not 0 <= int(states.positions.min()) <= int(states.positions.max()) < tokens:
        raise ValueError(f"the positions of a block are not those of its {tokens} tokens")
    return states.positions.long()


def _padded(heads: Sequence[tuple[Tensor, ...]]) -> LayerStates:
    keys, values, positions = map(list, zip(*heads, strict=True))
    return LayerStates(
        keys=pad_sequence(keys, batch_first=True),
        values=pad_sequence(values, batch_first=True),
        positions=pad_sequence(positions, batch_first=True, padding_value=-1),
    )


def _replace_states(
    old: LayerStates, chosen: Tensor, keys: Tensor, values: Tensor, tokens: int, all_heads: bool
) -> LayerStates:  # fmt: skip
    """A layer with new states of the chosen tokens, in the order of the text."""
    heads = len(old.keys)
    is_replaced = torch.zeros(tokens + 1, dtype=torch.bool, device=chosen.device).index_fill_(0, chosen, True)
    places = chosen.expand(heads, -1)
    if not all_heads:
        # Padding has the position -1, which marks the last column.
        has_state = is_replaced.new_zeros(heads, tokens + 1).scatter_(1, old.positions % (tokens + 1), True)
        places = torch.where(has_state.gather(1, places), places, -1)
    positions = torch.cat((torch.where(is_replaced[old.positions], -1, old.positions), places), dim=1)
    positions, order = positions.sort(dim=1)
    index = order[..., None].expand(-1, -1, keys.shape[-1])
    return LayerStates(
        keys=torch.cat((old.keys, keys), dim=1).gather(1, index),
        values=torch.cat((old.values, values), dim=1).gather(1, index),
        positions=positions,
    )


def _block(layers: Sequence[LayerStates], start: int, stop: int) -> KVStates:
    """The states of the tokens from `start` to `stop`."""
    masks = [(layer.positions >= start) & (layer.positions < stop) for layer in layers]
    keys, values, positions = (
        torch.cat([getattr(layer, name)[mask] for layer, mask in zip(layers, masks, strict=True)])
        for name in ("keys", "values", "positions")
    )
    lengths = torch.stack([mask.sum(dim=1) for mask in masks]).int().cpu()
    most = int(lengths.max())
    if most > int(lengths.min()):
        return KVStates(keys=keys, values=values, positions=(positions - start).int(), lengths=lengths)
    shape = (*lengths.shape, most)
    return KVStates(
        keys=keys.view(*shape, -1),
        values=values.view(*shape, -1),
        positions=None if most == stop - start else (positions - start).int().view(shape),
    )
