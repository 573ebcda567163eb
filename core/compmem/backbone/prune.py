"""Compression without training: keep those of the chunk's own KV states that matter most to a later question.

The question is not known yet. What its queries will attend to is estimated by one of these, as `KVPruning` names them:

* `attention`: the model's queries over the chunk itself stand for a later reader's, at the position directly after the
  chunk. The score of a state is the mean attention it gets from them, times the norm of its value.
* `expected-attention`: a normal distribution stands for the queries; see `compmem.backbone.expected_attention`.
* `kvzip`: the most attention a state gets while the model repeats the chunk; see `compmem.backbone.kvzip`.
* `kvzip-heads`: the same.
* `kvzap`: that, predicted without the repetition; see `compmem.backbone.kvzap`.

Each head keeps its own states; all heads keep the same number. With `kvzip-heads` and `kvzap`, all heads share one
budget; see `compmem.backbone.ragged`.

Chunks of one document may be read in one pass, so that each sees those before it (`parts`); scores are then those of
the whole text, and each chunk still keeps its own number of states.

A chunk is read after the beginning of a chat turn, as it will be when it is recalled. Attention that finds nothing goes
to the first tokens of a text (attention sinks, 2309.17453). With the prefix in front, these are not tokens of the
chunk, and several blocks in a row do not each bring a sink (as in adaptive parallel encoding, 2502.05431). Without a
prefix, all heads keep the first tokens of the chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from compmem.backbone.attention import SINK_TOKENS, attention
from compmem.backbone.decoder import Context, Decoder
from compmem.backbone.expected_attention import FUTURE_POSITIONS, expected_attention
from compmem.backbone.kvzap import FeatureFunction, QueryFeatures, predict_log_scores
from compmem.backbone.kvzip import REPETITION_METHODS, Repetition, repetition_scores
from compmem.backbone.memory_tokens import memory_token_count
from compmem.backbone.ragged import select_across_heads
from compmem.backbone.rotary import Rotary, rotate
from compmem.backbone.score_cache import Chunks, ScoreCache
from compmem.config import KVPruning
from compmem.schema import KVStates

SAMPLED_QUERIES = 64
"""Queries of the chunk that represent a reader's."""


def prune(
    decoder: Decoder,
    rotary: Rotary,
    chunks: Sequence[Sequence[int]],
    *,
    ratio: int,
    chat_prefix_ids: Sequence[int] = (),
    pruning: KVPruning = "attention",
    repetition: Repetition | None = None,
    stock: Decoder | None = None,
    score_cache: ScoreCache | None = None,
    parts: Sequence[Sequence[int]] | None = None,
) -> list[KVStates]:
    """The most important KV states of each chunk after the prefix: one per `ratio` tokens, in the text's order.

    Args:
        decoder: The layers that make the states: those of the stock model, or with a trained adapter.
        rotary: Their positions.
        chunks: Token ids of each chunk.
        ratio: Tokens per state that is kept.
        chat_prefix_ids: Token ids of the prefix.
        pruning: How importance is estimated.
        repetition: The request to repeat a chunk, which both kinds of KVzip need above ratio 1.
        stock: The layers that repeat a chunk. None: those that make the states.
        score_cache: Scores of chunks that were repeated before.
        parts: Tokens of the parts of each chunk that become blocks of their own. None: each chunk is one block.
    """
    texts, parts = [[*chat_prefix_ids, *chunk] for chunk in chunks], parts or [[len(chunk)] for chunk in chunks]
    prefix_tokens, select = len(chat_prefix_ids), _select_across_heads
    if pruning in REPETITION_METHODS and ratio > 1:
        assert repetition is not None, "KVzip needs the request to repeat"
        whole, scores = _score_by_repetition(
            decoder, rotary, chunks, chat_prefix_ids, stock or decoder, repetition, score_cache
        )
        if pruning == "kvzip":
            select = _select_per_head
    elif pruning == "kvzap" and ratio > 1:
        whole, scores = _score_by_prediction(decoder, rotary, texts, prefix_tokens)
    else:
        context = _SelectionContext(rotary, parts, prefix_tokens, ratio, len(decoder.layers), pruning)
        return _run(decoder, context, context, texts)
    return _select_parts(select, whole, scores, parts, prefix_tokens, ratio)


def all_states(decoder: Decoder, rotary: Rotary, texts: Sequence[Sequence[int]]) -> list[KVStates]:
    """All KV states of each text, keys before rotation."""
    context = _SelectionContext(rotary, [[len(text)] for text in texts], 0, 1, len(decoder.layers), "attention")
    return _run(decoder, context, context, texts)


def _score_by_repetition(
    decoder: Decoder, rotary: Rotary, chunks: Chunks, chat_prefix_ids: Sequence[int], stock: Decoder,
    repetition: Repetition, score_cache: ScoreCache | None,
) -> tuple[list[KVStates], list[Tensor]]:  # fmt: skip
    """All states of prefix and chunk, for each chunk, and KVzip's scores of those of the chunk."""

    def with_prefix(some_chunks: Chunks) -> list[list[int]]:
        return [[*chat_prefix_ids, *chunk] for chunk in some_chunks]

    def score(some_chunks: Chunks) -> tuple[list[KVStates], list[Tensor]]:
        with torch.no_grad():
            own = all_states(stock, rotary, with_prefix(some_chunks))
            return own, repetition_scores(stock, rotary, own, some_chunks, repetition)

    if score_cache is None:
        whole, scores = score(chunks)
        if stock is decoder and not torch.is_grad_enabled():
            return whole, scores
    else:
        scores = score_cache.get(chunks, lambda some_chunks: score(some_chunks)[1])
    return all_states(decoder, rotary, with_prefix(chunks)), scores


def _score_by_prediction(
    decoder: Decoder, rotary: Rotary, texts: Sequence[Sequence[int]], prefix_tokens: int
) -> tuple[list[KVStates], list[Tensor]]:
    """All states of each text, and the predicted scores of those after the chat prefix."""
    weights = decoder.importance
    if weights is None:
        raise ValueError("kv_pruning='kvzap' needs a backbone with fitted importance: `compmem train importance`")
    whole, scores = _with_features(
        decoder, rotary, texts, lambda layer, features: predict_log_scores(weights[layer], features)
    )
    return whole, [score[..., prefix_tokens:] for score in scores]


def importance_examples(
    decoder: Decoder, rotary: Rotary, chunks: Sequence[Sequence[int]], *, chat_prefix_ids: Sequence[int],
    stock: Decoder, repetition: Repetition,
) -> list[tuple[Tensor, Tensor]]:  # fmt: skip
    """Of each chunk the features that importance is predicted from, `[layers, tokens, features]`, and KVzip's scores.

    The scores are `[layers, kv_heads, tokens]`; the arguments are those of `prune`.
    """
    texts = [[*chat_prefix_ids, *chunk] for chunk in chunks]
    scores = repetition_scores(stock, rotary, all_states(stock, rotary, texts), chunks, repetition)
    _, features = _with_features(decoder, rotary, texts, lambda _, made: made)
    first = len(chat_prefix_ids)
    return [(own[:, first : len(text)], score) for own, score, text in zip(features, scores, texts, strict=True)]


def _with_features(
    decoder: Decoder, rotary: Rotary, texts: Sequence[Sequence[int]], use: FeatureFunction
) -> tuple[list[KVStates], list[Tensor]]:
    """All states of each text, and what is kept of its features, `[layers, ...]`, padded to the longest text."""
    inner = _SelectionContext(rotary, [[len(text)] for text in texts], 0, 1, len(decoder.layers), "attention")
    context = QueryFeatures(inner, len(decoder.layers), use)
    whole = _run(decoder, context, inner, texts)
    return whole, list(torch.stack([made for made in context.features if made is not None], dim=1))


def _run(
    decoder: Decoder, context: Context, scoring: "_SelectionContext", texts: Sequence[Sequence[int]]
) -> list[KVStates]:
    """The states of each part that were kept in a pass over the texts."""
    ids = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor(text, dtype=torch.long)
    decoder(ids.to(decoder.embed_tokens.weight.device), context)
    states = []
    for tokens, layers in zip(chain.from_iterable(scoring.parts), zip(*scoring.selected, strict=True), strict=True):
        keys, values, places = (torch.stack(parts) for parts in zip(*layers, strict=True))
        states.append(_states(keys, values, places, tokens))
    return states


class _SelectionContext(Context):
    """Causal attention over prefix and chunks; selects the chunks' states to keep in each layer."""

    def __init__(
        self,
        rotary: Rotary,
        parts: Sequence[Sequence[int]],
        prefix_tokens: int,
        ratio: int,
        layers: int,
        pruning: KVPruning,
    ) -> None:
        self._rotary = rotary
        self.parts = parts
        self._prefix_tokens = prefix_tokens
        self._ratio = ratio
        self._pruning = pruning
        self.selected: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in range(layers)]
        """Keys, values and positions of each part, by layer."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        tables = self._rotary(key.shape[2] + FUTURE_POSITIONS, key)
        cos, sin = (table[: key.shape[2]] for table in tables)
        rotated = rotate(key, cos, sin)
        self.selected[layer] = []
        for row, parts in enumerate(self.parts):
            length = self._prefix_tokens + sum(parts)
            own = slice(self._prefix_tokens, length)
            score = None
            if any(memory_token_count(tokens, self._ratio) < tokens for tokens in parts):
                future_tables = tuple(table[length : length + FUTURE_POSITIONS] for table in tables)
                expected = self._expected(query[row, :, own], rotated[row, :, :length], future_tables, scale)
                score = expected * value[row, :, own].norm(dim=-1)
            for begin, end in _spans(parts):
                mine = (key[row, :, own][:, begin:end], value[row, :, own][:, begin:end])
                places = torch.arange(end - begin, device=key.device).expand(key.shape[1], -1)
                if score is not None:
                    places = _top_positions(score[:, begin:end], self._prefix_tokens, self._ratio)
                    mine = (_gather_states(mine[0], places), _gather_states(mine[1], places))
                self.selected[layer].append((*mine, places))
        if layer == len(self.selected) - 1:
            return None
        return attention(rotate(query, cos, sin), rotated, value, scale=scale, dropout=dropout)

    def _expected(self, query: Tensor, key: Tensor, coming: tuple[Tensor, ...], scale: float) -> Tensor:
        """Attention that the chunk's states may expect, `[kv_heads, tokens]`.

        Args:
            query: The chunk's queries before rotation, `[heads, tokens, head_dim]`.
            key: Rotated keys of prefix and chunk, `[kv_heads, prefix + tokens, head_dim]`.
            coming: Cosines and sines of the positions behind the chunk, `[positions, head_dim]` each.
            scale: Factor of the scores.
        """
        cos, sin = coming
        if self._pruning == "attention":
            return _mean_attention(rotate(_samples(query), cos[0], sin[0]), key, scale)[:, self._prefix_tokens :]
        # As in kvpress, the first tokens take no part: neither their queries nor attention to them.
        own = _sink_count(query.shape[1], self._prefix_tokens, self._ratio)
        first = min(SINK_TOKENS, self._prefix_tokens) + own
        return pad(expected_attention(query[:, own:], key[:, first:], cos, sin, scale), (first, 0))[
            :, self._prefix_tokens :
        ]


def _samples(query: Tensor) -> Tensor:
    """Queries `[heads, samples, head_dim]` at equal distances in the chunk."""
    step = max(1, query.shape[1] // SAMPLED_QUERIES)
    return query[:, ::step]


def _mean_attention(query: Tensor, key: Tensor, scale: float) -> Tensor:
    """Mean attention that keys `[kv_heads, tokens, head_dim]` get from the queries, `[kv_heads, tokens]`."""
    grouped = query.reshape(key.shape[0], -1, key.shape[2])
    weights = torch.softmax((grouped @ key.transpose(1, 2)).float() * scale, dim=-1)
    return weights.mean(dim=1).detach()


def _sink_count(tokens: int, prefix_tokens: int, ratio: int) -> int:
    """First tokens of a chunk that every head keeps."""
    return 0 if prefix_tokens else min(SINK_TOKENS, max(1, memory_token_count(tokens, ratio) // 4))


def _top_positions(score: Tensor, prefix_tokens: int, ratio: int) -> Tensor:
    """Positions of the states that each head keeps, ascending, by the scores `[..., tokens]` of a chunk's states."""
    tokens, score = score.shape[-1], score.clone()
    score[..., : _sink_count(tokens, prefix_tokens, ratio)] = torch.inf
    return score.topk(memory_token_count(tokens, ratio), dim=-1).indices.sort(dim=-1).values


def _gather_states(states: Tensor, places: Tensor) -> Tensor:
    """States `[..., tokens, head_dim]` at the positions `[..., kept]`."""
    return states.gather(-2, places[..., None].expand(*places.shape, states.shape[-1]))


def _select_parts(
    choose: Callable[[KVStates, Tensor, int, int], KVStates], whole: Sequence[KVStates], scores: Sequence[Tensor],
    parts: Sequence[Sequence[int]], prefix_tokens: int, ratio: int,
) -> list[KVStates]:  # fmt: skip
    """The best states of each part of each text, of which `whole` has the states of the prefix as well."""
    chosen = []
    for states, score, own in zip(whole, scores, parts, strict=True):
        for begin, end in _spans(own):
            here = slice(prefix_tokens + begin, prefix_tokens + end)
            part = KVStates(keys=states.keys[:, :, here], values=states.values[:, :, here])
            chosen.append(choose(part, score[..., begin:end], prefix_tokens, ratio))
    return chosen


def _spans(parts: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Where parts of these lengths begin and end."""
    return pairwise(accumulate(parts, initial=0))


def _select_per_head(states: KVStates, score: Tensor, prefix_tokens: int, ratio: int) -> KVStates:
    """The best of a chunk's states, equally many in each head; `prefix_tokens` tokens stood before the text."""
    places = _top_positions(score, prefix_tokens, ratio)
    return _states(_gather_states(states.keys, places), _gather_states(states.values, places), places, score.shape[2])


def _select_across_heads(states: KVStates, score: Tensor, prefix_tokens: int, ratio: int) -> KVStates:
    """The best of a chunk's states over all layers and heads."""
    tokens = score.shape[2]
    if memory_token_count(tokens, ratio) == tokens:
        return _select_per_head(states, score, prefix_tokens, ratio)
    return select_across_heads(states, score, ratio, _sink_count(tokens, prefix_tokens, ratio))


def _states(keys: Tensor, values: Tensor, places: Tensor, tokens: int) -> KVStates:
    return KVStates(keys=keys, values=values, positions=None if places.shape[2] == tokens else places.int())
