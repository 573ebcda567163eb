"""Compression without training: keep those of the chunk's own KV states that matter most to a later question.

The question is not known yet. The model's queries over the chunk itself serve as samples of a later reader's queries,
at positions directly after the chunk (similar to expected attention, 2510.00636, with samples instead of a normal
distribution). The score of a state is the attention it would get, times the norm of its value. Each head of each layer
keeps its own states.

A chunk is read after the beginning of a chat turn, as it will be when it is recalled. Attention that finds nothing goes
to the first tokens of a text (attention sinks, 2309.17453). With the prefix in front, these are not tokens of the
chunk, and several blocks in a row do not each bring a sink (as in adaptive parallel encoding, 2502.05431). Without a
prefix, all heads keep the first tokens of the chunk.
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
"""First tokens that every head keeps if there is no prefix; fewer if a block is small."""
SAMPLES = 64
"""Queries of the chunk that represent a reader's."""


def prune(
    decoder: Decoder, rotary: Rotary, chunks: Sequence[Sequence[int]], *, ratio: int, lead: Sequence[int] = ()
) -> list[KVStates]:
    """The most important KV states of each chunk after the prefix: one per `ratio` tokens, in the text's order."""
    texts = [[*lead, *chunk] for chunk in chunks]
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
    device = decoder.embed_tokens.weight.device
    context = _Scoring(rotary, [len(text) for text in texts], len(lead), ratio, len(decoder.layers))
    decoder(ids.to(device), context)
    states = []
    for chunk, layers in zip(chunks, zip(*context.kept, strict=True), strict=True):
        keys, values, positions = (torch.stack(parts) for parts in zip(*layers, strict=True))
        whole = positions.shape[2] == len(chunk)
        states.append(KVStates(keys=keys, values=values, positions=None if whole else positions.int()))
    return states


class _Scoring(Context):
    """Causal attention over prefix and chunks; selects the chunks' states to keep in each layer."""

    def __init__(self, rotary: Rotary, lengths: Sequence[int], lead: int, ratio: int, layers: int) -> None:
        self._rotary = rotary
        self._lengths = lengths
        self._lead = lead
        self._ratio = ratio
        self.kept: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(layers)]
        """Keys, values and positions within the chunk of each row, by layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        cos, sin = self._rotary(key.shape[2] + 1, key)
        rotated = rotate(key, cos[:-1], sin[:-1])
        self.kept[layer] = []
        for row, length in enumerate(self._lengths):
            mine = (key[row, :, self._lead : length], value[row, :, self._lead : length])
            tokens = length - self._lead
            count = memory_count(tokens, self._ratio)
            places = torch.arange(tokens, device=key.device).expand(key.shape[1], -1)
            if count < tokens:
                behind = rotate(_samples(query[row, :, self._lead : length]), cos[length], sin[length])
                expected = _expected(behind, rotated[row, :, :length], scale)[:, self._lead :]
                score = expected * mine[1].norm(dim=-1)
                if not self._lead:
                    score[:, : min(SINKS, max(1, count // 4))] = torch.inf
                places = score.topk(count, dim=-1).indices.sort(dim=-1).values
                index = places[..., None].expand(-1, -1, key.shape[3])
                mine = (mine[0].gather(1, index), mine[1].gather(1, index))
            self.kept[layer].append((*mine, places))
        if layer == len(self.kept) - 1:
            return None
        return attention(rotate(query, cos[:-1], sin[:-1]), rotated, value, scale=scale, dropout=dropout)


def _samples(query: Tensor) -> Tensor:
    """Queries `[heads, samples, head_dim]` at equal distances in the chunk."""
    step = max(1, query.shape[1] // SAMPLES)
    return query[:, ::step]


def _expected(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean attention that keys `[kv_heads, tokens, head_dim]` get from the queries, `[kv_heads, tokens]`."""
    grouped = query.reshape(key.shape[0], -1, key.shape[2])
    weights = torch.softmax((grouped @ key.transpose(1, 2)).float() * scale, dim=-1)
    return weights.mean(dim=1).detach()
