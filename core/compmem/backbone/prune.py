"""Compression without training: of the chunk's own KV states, those that matter most to what may be asked.

What will be asked is not known, but how the model asks is: its queries over the chunk itself are taken as samples of
what a reader's will be, put right behind the chunk (in the manner of expected attention, 2510.00636, by sampling in
place of a normal distribution). A state's score is the attention it would get, times the length of its value. Each
head of each layer keeps its own states; the first tokens, where attention rests when it finds nothing, are kept by all.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from compmem.backbone.attention import attention
from compmem.backbone.decoder import Context, Decoder
from compmem.backbone.memory import memory_count
from compmem.backbone.rotary import Rotary, rotate
from compmem.schema import KVStates

SINKS = 4
"""First tokens kept by every head (2309.17453); fewer where a block is small."""
SAMPLES = 64
"""Queries of the chunk that stand for a reader's."""


def prune(decoder: Decoder, rotary: Rotary, chunks: Sequence[Sequence[int]], *, ratio: int) -> list[KVStates]:
    """The most important KV states of each chunk, one for every `ratio` tokens, in the order of the text."""
    ids = torch.zeros(len(chunks), max(map(len, chunks)), dtype=torch.long)
    for row, chunk in enumerate(chunks):
        ids[row, : len(chunk)] = torch.tensor(chunk, dtype=torch.long)
    device = decoder.embed_tokens.weight.device
    context = _Scoring(rotary, [len(chunk) for chunk in chunks], ratio, len(decoder.layers))
    decoder(ids.to(device), context)
    return [
        KVStates(keys=torch.stack([key for key, _ in layers]), values=torch.stack([value for _, value in layers]))
        for layers in zip(*context.kept, strict=True)
    ]


class _Scoring(Context):
    """Plain causal attention over the chunks, which picks the states to keep as it goes."""

    def __init__(self, rotary: Rotary, lengths: Sequence[int], ratio: int, layers: int) -> None:
        self._rotary = rotary
        self._lengths = lengths
        self._ratio = ratio
        self.kept: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(layers)]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        cos, sin = self._rotary(key.shape[2] + 1, key)
        rotated = rotate(key, cos[:-1], sin[:-1])
        self.kept[layer] = []
        for row, length in enumerate(self._lengths):
            mine = (key[row, :, :length], value[row, :, :length])
            count = memory_count(length, self._ratio)
            if count < length:
                behind = rotate(_samples(query[row, :, :length]), cos[length], sin[length])
                score = _expected(behind, rotated[row, :, :length], scale) * mine[1].norm(dim=-1)
                score[:, : min(SINKS, max(1, count // 4))] = torch.inf
                index = score.topk(count, dim=-1).indices.sort(dim=-1).values[..., None].expand(-1, -1, key.shape[3])
                mine = (mine[0].gather(1, index), mine[1].gather(1, index))
            self.kept[layer].append(mine)
        if layer == len(self.kept) - 1:
            return None
        return attention(rotate(query, cos[:-1], sin[:-1]), rotated, value, scale=scale, dropout=dropout)


def _samples(query: Tensor) -> Tensor:
    """Queries `[heads, samples, head_dim]` spread evenly over the chunk."""
    step = max(1, query.shape[1] // SAMPLES)
    return query[:, ::step]


def _expected(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Attention that keys `[kv_heads, tokens, head_dim]` get from the queries on average, `[kv_heads, tokens]`."""
    grouped = query.reshape(key.shape[0], -1, key.shape[2])
    weights = torch.softmax((grouped @ key.transpose(1, 2)).float() * scale, dim=-1)
    return weights.mean(dim=1).detach()
