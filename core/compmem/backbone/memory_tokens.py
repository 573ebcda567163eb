"""Compression with memory tokens: one after every few source tokens, window by window (2602.08382, section 3).

Chunks have no padding inside: the memory token of an incomplete last group directly follows it. So causal attention
alone separates rows of different lengths, and no mask is needed. Keys are stored before rotation. In each window, the
memory of earlier windows has positions from 0, and the window's tokens follow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from compmem.backbone.attention import attention
from compmem.backbone.decoder import Context, Decoder
from compmem.backbone.rotary import Rotary, rotate
from compmem.schema import KVStates

States = list[tuple[Tensor, Tensor]]
"""Keys and values of each layer, `[rows, kv_heads, memory_tokens, head_dim]`."""


def memory_token_count(tokens: int, ratio: int) -> int:
    """Memory tokens for a number of source tokens."""
    return -(-tokens // ratio)


def compress(
    decoder: Decoder, rotary: Rotary, chunks: Sequence[Sequence[int]], *, ratio: int, window: int
) -> list[KVStates]:
    """The KV states of each chunk's memory tokens, in order."""
    order = sorted(range(len(chunks)), key=lambda i: -len(chunks[i]))
    past_states: States = []
    pieces: list[tuple[list[int], Sequence[Tensor], Sequence[Tensor]]] = []
    for start in range(0, len(chunks[order[0]]), window):
        parts = [chunks[i][start : start + window] for i in order if len(chunks[i]) > start]
        past_states = [(key[: len(parts)], value[: len(parts)]) for key, value in past_states]
        made = _run_window(decoder, rotary, parts, past_states, ratio)
        counts = [memory_token_count(len(part), ratio) for part in parts]
        keys, values = (torch.stack(states, dim=1) for states in zip(*made, strict=True))
        # Split now: the gradient of one row at a time would be as large as that of all rows.
        pieces.append((counts, keys.unbind(), values.unbind()))
        past_states = [
            (torch.cat((old[0], new[0]), dim=2), torch.cat((old[1], new[1]), dim=2))
            for old, new in zip(past_states, made, strict=True)
        ] if past_states else made  # fmt: skip
    states: list[KVStates | None] = [None] * len(chunks)
    for row, index in enumerate(order):
        row_states = [(counts[row], keys[row], values[row]) for counts, keys, values in pieces if row < len(counts)]
        states[index] = KVStates(
            keys=torch.cat([keys[:, :, :count] for count, keys, _ in row_states], dim=2),
            values=torch.cat([values[:, :, :count] for count, _, values in row_states], dim=2),
        )
    return [state for state in states if state is not None]


def _run_window(
    decoder: Decoder, rotary: Rotary, parts: Sequence[Sequence[int]], past_states: States, ratio: int
) -> States:
    """Run one window of every row and return the states of its memory tokens."""
    device = decoder.embed_tokens.weight.device
    counts = [memory_token_count(len(part), ratio) for part in parts]
    width = len(parts[0]) + counts[0]
    ids = torch.zeros(len(parts), width, dtype=torch.long)
    columns = torch.zeros(len(parts), counts[0], dtype=torch.long)
    for row, (part, count) in enumerate(zip(parts, counts, strict=True)):
        place = torch.arange(len(part))
        ids[row, place + place // ratio] = torch.tensor(part, dtype=torch.long)
        number = torch.arange(count)
        columns[row, :count] = ((number + 1) * ratio).clamp(max=len(part)) + number
    is_memory = torch.arange(counts[0])[None] < torch.tensor(counts)[:, None]
    flat = (columns + torch.arange(len(parts))[:, None] * width)[is_memory]
    context = _WindowContext(rotary, past_states, columns.to(device), len(decoder.layers))
    decoder(ids.to(device), context, memory_rows=flat.to(device))
    return context.states


class _WindowContext(Context):
    """One window of each row after the memory of earlier windows; records the states of its memory tokens."""

    def __init__(self, rotary: Rotary, past_states: States, columns: Tensor, layers: int) -> None:
        self._rotary = rotary
        self._past_states = past_states
        self._columns = columns[:, None, :, None]
        empty = torch.empty(0)
        self.states: States = [(empty, empty)] * layers

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        index = self._columns.expand(-1, key.shape[1], -1, key.shape[3])
        self.states[layer] = (key.gather(2, index), value.gather(2, index))
        if layer == len(self.states) - 1:
            return None
        if self._past_states:
            old_key, old_value = self._past_states[layer]
            key, value = torch.cat((old_key, key), dim=2), torch.cat((old_value, value), dim=2)
        cos, sin = self._rotary(key.shape[2], key)
        past = key.shape[2] - query.shape[2]
        return attention(
            rotate(query, cos[past:], sin[past:]), rotate(key, cos, sin), value, scale=scale, dropout=dropout
        )
