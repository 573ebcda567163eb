"""KVzip (2505.23416): the importance of KV states for repeating their text, which needs no question.

Behind a text's own KV states the model is asked to repeat it, and the text follows word for word. The score of a state
is the most attention that it gets from any of these queries, of any head that shares its key. A long text is repeated
in pieces. As in kvpress, the softmax is over the first tokens of the text, the states of the piece, and the repetition.
"""

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from compmem.backbone.attention import SINK_TOKENS, attention
from compmem.backbone.decoder import Decoder
from compmem.backbone.prefix_context import Layout, Prefix, PrefixContext
from compmem.backbone.prompts import Prompt
from compmem.backbone.rotary import Rotary
from compmem.config import KVPruning
from compmem.schema import KVStates

REPETITION_METHODS: Final[tuple[KVPruning, ...]] = ("kvzip", "kvzip-heads")
"""The pruning methods that use these scores."""
PIECE_TOKENS = 2048
"""Tokens that are repeated at once."""
TILE_BYTES = 2**21
"""Size of the attention weights that are computed at once on a CPU: they fit into its cache."""
OPENING_TOKENS = 8
"""Tokens before a later piece that are shown to the model, so that it knows where to continue."""


class Repetition:
    """The request to repeat a text, and the text as the reply; `prompt` makes a user turn."""

    def __init__(self, prompt: Callable[[str], Prompt]) -> None:
        self._first_prompt = prompt("{text}\n\nRepeat the previous context exactly.")
        self._later_prompt = prompt("{text}\n\nRepeat the part of the previous context exactly, starting with{opening}")
        self._request = max(len(self._first_prompt), len(self._later_prompt) + OPENING_TOKENS)

    def ids(self, text: Sequence[int], start: int) -> list[int]:
        """Token ids of the request and of the piece of the text from `start` on."""
        if start:
            _, request = self._later_prompt.around("text", opening=text[start - OPENING_TOKENS : start])
        else:
            _, request = self._first_prompt.around("text")
        return [*request, *text[start : start + PIECE_TOKENS]]

    def tokens(self, text: int) -> int:
        """Maximum number of tokens of a request and its reply, for a text of so many tokens."""
        return self._request + min(text, PIECE_TOKENS)

    def longest(self, positions: int) -> int:
        """Maximum number of tokens of a text that fits, with its repetition, in so many positions."""
        free = positions - self._request
        return max(free // 2, free - PIECE_TOKENS)


def repetition_scores(
    decoder: Decoder,
    rotary: Rotary,
    whole: Sequence[KVStates],
    chunks: Sequence[Sequence[int]],
    repetition: Repetition,
) -> list[Tensor]:
    """The score of every state of each chunk, `[layers, kv_heads, tokens]`.

    Args:
        decoder: The stock model's layers.
        rotary: Its positions.
        whole: All states of each chunk and of what stands before it.
        chunks: Token ids of each chunk.
        repetition: The request to repeat.
    """
    like = decoder.embed_tokens.weight
    pieces: list[list[Tensor]] = [[] for _ in chunks]
    for start in range(0, max(map(len, chunks)), PIECE_TOKENS):
        rows = [row for row, chunk in enumerate(chunks) if len(chunk) > start]
        said = [repetition.ids(chunks[row], start) for row in rows]
        prefix = Prefix([[whole[row]] for row in rows], rotary, "rotated", like)
        layout = Layout.of(said, prefix.counts, prefix.counts, like)
        begins = [count - len(chunks[row]) + start for row, count in zip(rows, prefix.counts, strict=True)]
        spans = [(begin, min(begin + PIECE_TOKENS, count)) for begin, count in zip(begins, prefix.counts, strict=True)]
        context = _RepetitionContext(prefix, layout, rotary, spans, list(map(len, said)), len(decoder.layers))
        decoder(layout.ids, context)
        for row, scores in zip(rows, context.scores, strict=True):
            pieces[row].append(torch.stack(scores))
    return [torch.cat(parts, dim=2) for parts in pieces]


class _RepetitionContext(PrefixContext):
    """Requests and replies behind their texts; scores the states of the texts' spans in each layer."""

    def __init__(
        self, prefix: Prefix, layout: Layout, rotary: Rotary, spans: Sequence[tuple[int, int]],
        lengths: Sequence[int], layers: int,
    ) -> None:  # fmt: skip
        super().__init__(prefix, layout, rotary)
        self._spans = spans
        self._lengths = lengths
        self._layers = layers
        self.scores: list[list[Tensor]] = [[] for _ in spans]
        """`[kv_heads, span]` of each row, by layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        query, key, value = self.behind(layer, query, key, value)
        own = self._prefix.longest
        for row, ((start, stop), length) in enumerate(zip(self._spans, self._lengths, strict=True)):
            first = min(SINK_TOKENS, start)
            parts = (key[row, :, :first], key[row, :, start:stop], key[row, :, own : own + length])
            weights = _max_attention(query[row, :, :length], torch.cat(parts, dim=1), scale)
            self.scores[row].append(weights[:, first : first + stop - start])
        if layer == self._layers - 1:
            return None
        return attention(query, key, value, scale=scale, mask=self._layout.mask, dropout=dropout)


@torch.no_grad()
def _max_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """The most attention that each key gets, `[kv_heads, keys]`; the last keys are the queries' own, seen causally."""
    (kv_heads, count, head_dim), length = key.shape, query.shape[1]
    grouped = query.reshape(kv_heads, -1, length, head_dim)
    step = length  # queries at once
    if query.device.type == "cpu":
        step = min(length, max(1, TILE_BYTES // (4 * grouped.shape[1] * count)))
    later = torch.ones(step, step, dtype=torch.bool, device=key.device).triu(1)
    most = torch.zeros(kv_heads, count, device=key.device)
    for begin in range(0, length, step):
        end = min(begin + step, length)
        seen = count - length + end  # keys up to that of the last query
        for head, keys in enumerate(key[:, :seen]):
            queries = grouped[head, :, begin:end].reshape(-1, head_dim)
            scores = ((queries @ keys.T).float() * scale).view(-1, end - begin, seen)
            scores[..., seen - (end - begin) :].masked_fill_(later[: end - begin, : end - begin], -torch.inf)
            most[head, :seen] = most[head, :seen].maximum(scores.softmax(dim=-1).amax(dim=(0, 1)))
    return most
