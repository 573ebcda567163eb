"""KV states of which each head has its own number: chosen with one budget for all heads, and read together.

They are stored one head after the other, without padding. Only where blocks are read, the heads of a layer are padded
to the longest of that layer, and a mask for each head leaves the padding out.

A block takes n positions, as with equal budgets. A head with c states puts state i at position floor(i*n/c). With equal
budgets these are 0 to n - 1.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from compmem.backbone.config import Positions
from compmem.backbone.memory_tokens import memory_token_count
from compmem.backbone.prefix_context import Layout, Prefix, check_states, slots_of
from compmem.backbone.rotary import Rotary, rotate
from compmem.schema import KVStates

MIN_HEAD_SHARE: Final = 0.2
"""Share of an equal budget that every head keeps, as in Ada-KV (2407.11550)."""


def select_across_heads(states: KVStates, score: Tensor, ratio: int, sinks: int) -> KVStates:
    """The best of a chunk's states over all layers and heads, as many as with equal budgets.

    Args:
        states: All states of the chunk.
        score: The score of each, `[layers, kv_heads, tokens]`.
        ratio: Tokens per state that is kept, on average.
        sinks: First tokens of the chunk that every head keeps.
    """
    layers, heads, tokens = score.shape
    equal = memory_token_count(tokens, ratio)
    score = score.clone()
    score[..., :sinks] = torch.inf
    score.scatter_(2, score.topk(max(1, int(MIN_HEAD_SHARE * equal)), dim=-1).indices, torch.inf)
    best = score.flatten().topk(layers * heads * equal).indices
    kept = torch.zeros(score.numel(), dtype=torch.bool, device=score.device).index_fill_(0, best, True).view_as(score)
    return KVStates(
        keys=states.keys[kept],
        values=states.values[kept],
        positions=kept.nonzero()[:, 2].int(),
        lengths=kept.sum(dim=2).int().cpu(),
    )


def head_lengths(states: KVStates) -> Tensor:
    """States of each head of a block, `[layers, kv_heads]`."""
    found = states.keys.shape
    return torch.full(found[:2], found[2]) if states.lengths is None else states.lengths.long()


def head_indices(lengths: Tensor) -> Tensor:
    """The head of each state, counted over all layers, `[states]`."""
    return torch.arange(lengths.numel()).repeat_interleave(lengths.flatten())


def indices_in_head(lengths: Tensor) -> Tensor:
    """The number of each state within its head, `[states]`."""
    flat = lengths.flatten().long()
    return torch.arange(int(flat.sum())) - (flat.cumsum(0) - flat).repeat_interleave(flat)


def make_prefix(
    rows: Sequence[Sequence[KVStates]], rotary: Rotary, positions: Positions, like: Tensor, shape: tuple[int, int, int]
) -> Prefix:
    """The recalled blocks of each row, for a backbone of this shape; see `Prefix`.

    Raises:
        ValueError: A block was made by another backbone.
    """
    check_states(rows, shape)
    if all(states.lengths is None for row in rows for states in row):
        return Prefix(rows, rotary, positions, like)
    return RaggedPrefix(rows, rotary, positions, like, shape)


class RaggedPrefix(Prefix):
    """Recalled blocks of which some have a number of states for each head; each layer is padded to its longest head."""

    ragged = True

    def __init__(
        self, rows: Sequence[Sequence[KVStates]], rotary: Rotary, positions: Positions, like: Tensor,
        shape: tuple[int, int, int],
    ) -> None:  # fmt: skip
        super().__init__((), rotary, positions, like)
        totals = torch.zeros(len(rows), *shape[:2], dtype=torch.long)
        blocks = []
        for row, own in enumerate(rows):
            for number, states in enumerate(own):
                lengths = head_lengths(states)
                blocks.append((states, lengths, row, totals[row].clone(), slots_of(own[:number])))
                totals[row] += lengths
        self.counts = list(map(slots_of, rows))
        widths = totals.amax(dim=(0, 2))
        self.longest = int(widths.max())
        self._widths: list[int] = widths.tolist()
        self._totals = totals.transpose(0, 1).to(like.device)
        """States of each head, `[layers, rows, kv_heads]`."""
        self._layers = list(zip(*(_by_layer(*block, widths) for block in blocks), strict=True))

    def layer(self, number: int, heads: int, head_dim: int) -> tuple[Tensor, Tensor]:
        """Keys at their positions, and values, `[rows, kv_heads, slots of the layer, head_dim]` each."""
        like, rows = self._like, len(self.counts)
        keys, values, slots, places = (
            torch.cat([one.to(like.device, like.dtype if one.is_floating_point() else None) for one in parts])
            for parts in zip(*self._layers[number], strict=True)
        )
        if self._positions == "rotated":
            cos, sin = self._rotary(max(self.counts), keys)
            keys = rotate(keys, cos[places], sin[places])
        empty = like.new_zeros(rows * heads * self._widths[number], head_dim)
        shape = (rows, heads, self._widths[number], head_dim)
        return empty.index_copy(0, slots, keys).view(shape), empty.index_copy(0, slots, values).view(shape)

    def leading_slots(self, number: int) -> int:
        """As in `Prefix`."""
        return self.longest - self._widths[number]

    def occupied(self) -> Tensor:
        """As in `Prefix`."""
        first = self.longest - torch.tensor(self._widths, device=self._totals.device)
        number = (torch.arange(self.longest, device=first.device) - first[:, None])[:, None, None]
        return (number >= 0) & (number < self._totals[..., None])

    def mask(self, number: int, layout: Layout) -> Tensor | None:
        """As in `Prefix`: True where a query attends."""
        prompt, device = layout.ids.shape[1], self._totals.device
        recalled = torch.arange(self._widths[number], device=device) < self._totals[number][..., None, None]
        causal = torch.ones(prompt, prompt, dtype=torch.bool, device=device).tril()
        rows, heads = recalled.shape[:2]
        return torch.cat((recalled.expand(-1, -1, prompt, -1), causal.expand(rows, heads, -1, -1)), dim=3)


def _by_layer(
    states: KVStates, lengths: Tensor, row: int, before: Tensor, begin: int, widths: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Of each layer: keys and values `[states, head_dim]`, their slots in the padded layer, and their positions.

    Args:
        states: A block.
        lengths: Its states of each head.
        row: Its row.
        before: States of each head in the blocks in front of it.
        begin: Positions of the blocks in front of it.
        widths: Slots of each layer.
    """
    head, number, heads = head_indices(lengths), indices_in_head(lengths), lengths.shape[1]
    slots = (row * heads + head % heads) * widths[head // heads] + before.flatten()[head] + number
    places = begin + number * states.slots // lengths.flatten()[head]
    flat = (states.keys.flatten(0, -2), states.values.flatten(0, -2), slots, places)
    return zip(*(torch.split(one, lengths.sum(dim=1).tolist()) for one in flat), strict=True)
