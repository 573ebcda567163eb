"""Blocks that see one another, without training: states of recalled blocks computed again in their common context.

Each chunk was compressed without the others. These methods choose tokens of later blocks and compute their KV states
again, with attention to: the chat prefix, the stored states of earlier blocks and of the same block, and the other
chosen tokens. The new states replace the old ones; a head that had pruned the token gets a new state. Keys are kept
before rotation; the chosen tokens are run at their positions in the joined text.

* `epic`: the first tokens of every block but the first (LegoLink, 2410.15332).
* `prophetkv`: the tokens that the question attends to most, over all layers (2602.02579); of the first block too, if
  states were left out.
* `cacheblend`: the tokens whose values in the second layer change most (2405.16444); there the share shrinks from layer
  to layer, here it is chosen once.
* `graph-kv`: all tokens of every later block, each block behind the first one alone (2506.07334). Pruned heads take
  nothing more.

A first block that kept all its states is never computed again: it was encoded at the position where it is read. With
every token chosen, the result is that of reading the joined text.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, scaled_dot_product_attention

from compmem.backbone.backbone import Backbone
from compmem.backbone.decoder import Context, Decoder
from compmem.backbone.joined import JoinedBlocks
from compmem.backbone.prefix_context import check_states
from compmem.backbone.rotary import Rotary, rotate
from compmem.config import KVFusion
from compmem.schema import KVStates

RECOMPUTED_SHARE: Final = 0.1
"""Share of the tokens that `prophetkv` and `cacheblend` choose."""
POOL_TOKENS: Final = 5
"""Neighbouring tokens over which the attention of `prophetkv` is averaged, so that words are chosen and not parts of
them; SnapKV (2404.14469) pools in this way."""
EPIC_TOKENS: Final = 16
"""Tokens of each later block that `epic` chooses."""


def fuse_blocks(
    backbone: Backbone,
    blocks: Sequence[KVStates],
    texts: Sequence[Sequence[int]],
    question: Sequence[int],
    *,
    methods: Sequence[KVFusion],
    share: float = RECOMPUTED_SHARE,
    first: int = EPIC_TOKENS,
) -> list[KVStates]:
    """The blocks with a part of their states computed again; of several methods, the union of the tokens.

    Args:
        backbone: The model that compressed them; what is computed again is read with the reasoner's adapter.
        blocks: Blocks in the order in which they are read.
        texts: The token ids that each was compressed from.
        question: Token ids of the question.
        methods: How tokens are chosen.
        share: Share of the tokens that `prophetkv` and `cacheblend` choose.
        first: Tokens of each later block that `epic` chooses.

    Raises:
        ValueError: A block does not belong to its text or to this backbone, the question is empty, or the text is
            larger than the context.
    """
    _check(backbone, blocks, texts, question)
    if not blocks or set(methods) <= {"none", "ape"}:
        return list(blocks)
    pruned = any(states.positions is not None for states in blocks)
    decoder, rotary, like = backbone.decoder.as_role("reasoner"), backbone.rotary, backbone.decoder.embed_tokens.weight
    prefix_ids, prefix_count = backbone.chat_prefix_ids, 0
    if prefix_ids:
        blocks, texts = [backbone.chat_prefix_states(prefix_ids), *blocks], [prefix_ids, *texts]
        prefix_count = 1
    if "graph-kv" in methods:
        before = [*zip(blocks[: prefix_count + 1], texts[: prefix_count + 1], strict=True)]
        later = zip(blocks[prefix_count + 1 :], texts[prefix_count + 1 :], strict=True)
        blocks = [*blocks[: prefix_count + 1], *(_reencode(decoder, rotary, before, *one, like) for one in later)]
    joined = JoinedBlocks.of(blocks, texts, like)
    begins, end = joined.starts[prefix_count:], len(joined.ids)
    second = min(begins[1:], default=end)
    chosen = set[int]()
    if "epic" in methods:
        pairs = pairwise((*begins[1:], end))
        chosen.update(i for start, stop in pairs for i in range(start, min(start + first, stop)))
    if "prophetkv" in methods:
        # A first block that lacks nothing was encoded where it stands.
        begin = begins[0] if pruned else second
        chosen.update(
            _top_positions(lambda: _pooled(attention_to(decoder, rotary, joined, question)), begin, end, share)
        )
    if "cacheblend" in methods:
        chosen.update(_top_positions(lambda: value_change(decoder, rotary, joined, second), second, end, share))
    if not chosen:
        return list(blocks[prefix_count:])
    places = torch.tensor(sorted(chosen), device=like.device)
    return joined.with_states(places, recompute(decoder, rotary, joined, places), all_heads=True)[prefix_count:]


def _pooled(scores: Tensor) -> Tensor:
    padding = POOL_TOKENS // 2
    return avg_pool1d(scores[None, None], POOL_TOKENS, stride=1, padding=padding, count_include_pad=False)[0, 0]


def _top_positions(score: Callable[[], Tensor], begin: int, end: int, share: float) -> list[int]:
    """The positions from `begin` to `end` of that share of the tokens with the highest scores."""
    count = round(share * (end - begin))
    return (begin + score()[begin:].topk(count).indices).tolist() if count else []


def _check(
    backbone: Backbone, blocks: Sequence[KVStates], texts: Sequence[Sequence[int]], question: Sequence[int]
) -> None:
    if backbone.memory.inserted:
        raise ValueError("blocks of memory tokens cannot be fused: these are no tokens of the text")
    if (total := len(backbone.chat_prefix_ids) + sum(map(len, texts)) + len(question)) > backbone.context:
        raise ValueError(f"blocks of {total} tokens of text are larger than the context of {backbone.context}")
    if not question:
        raise ValueError("the question has no tokens")
    check_states([blocks], backbone.shape)


def recompute(
    decoder: Decoder, rotary: Rotary, joined: JoinedBlocks, chosen: Tensor, *, depth: int | None = None
) -> list[tuple[Tensor, Tensor]]:
    """New states of the tokens at the chosen positions: of each of the first layers, keys and values.

    They are `[kv_heads, chosen, head_dim]`, keys before rotation.
    """
    context = _RecomputeContext(rotary, joined, chosen, depth or len(decoder.layers))
    _run(decoder, joined.ids[chosen], context, depth)
    return context.states


def attention_to(decoder: Decoder, rotary: Rotary, joined: JoinedBlocks, question: Sequence[int]) -> Tensor:
    """Attention `[tokens]` that a question behind the blocks pays to each token of the text, summed over the layers."""
    context = _QuestionContext(rotary, joined, len(decoder.layers))
    _run(decoder, torch.tensor(question, device=joined.ids.device), context)
    return context.attention


def value_change(decoder: Decoder, rotary: Rotary, joined: JoinedBlocks, begin: int) -> Tensor:
    """Squared change `[tokens]` of each token's values in the second layer, where all from `begin` on see one another.

    In the first layer a token's values depend on nothing but the token.
    """
    depth = min(2, len(decoder.layers))
    later = torch.arange(begin, len(joined.ids), device=joined.ids.device)
    _, values = recompute(decoder, rotary, joined, later, depth=depth)[-1]
    old = joined.layers[depth - 1]
    number = (old.positions - begin).clamp(min=0)
    new = values.gather(1, number[..., None].expand_as(old.values))
    change = (new.float() - old.values.float()).square().sum(dim=-1) * (old.positions >= begin)
    return change.new_zeros(len(joined.ids)).index_add_(0, begin + number.flatten(), change.flatten())


class _RecomputeContext(Context):
    """Chosen tokens of the text among the stored states of all others; keeps the states that result.

    A head that was pruned of a chosen token sees its new state all the same.
    """

    def __init__(self, rotary: Rotary, joined: JoinedBlocks, chosen: Tensor, depth: int) -> None:
        self._rotary = rotary
        self._joined = joined
        self._chosen = chosen
        self._last = depth - 1
        self._others = torch.ones_like(joined.ids, dtype=torch.bool).index_fill_(0, chosen, False)
        self._among = torch.ones(len(chosen), len(chosen), dtype=torch.bool, device=chosen.device).tril()
        self.states: list[tuple[Tensor, Tensor]] = []
        """Keys and values of each layer, `[kv_heads, chosen, head_dim]`."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        self.states.append((key[0], value[0]))
        if layer == self._last:
            return None
        old = self._joined.layers[layer]
        cos, sin = self._rotary(len(self._joined.ids), key)
        mine = cos[self._chosen], sin[self._chosen]
        others = (old.positions >= 0) & self._others[old.positions]
        stored = (old.positions[:, None] <= self._chosen[:, None]) & others[:, None]
        visible = torch.cat((stored, self._among.expand(len(stored), -1, -1)), dim=2)[:, None]
        keys = torch.cat((rotate(old.keys, cos[old.positions], sin[old.positions]), rotate(key[0], *mine)), dim=1)
        values = torch.cat((old.values, value[0]), dim=1)
        # Heads that share keys are the heads of one row, so that a row's mask is made once.
        grouped = rotate(query, *mine).reshape(len(keys), -1, *query.shape[2:])
        shape = (-1, grouped.shape[1], -1, -1)
        made = scaled_dot_product_attention(
            grouped, keys[:, None].expand(shape), values[:, None].expand(shape), attn_mask=visible, scale=scale
        )
        return made.flatten(0, 1).transpose(0, 1).flatten(1)[None]


class _QuestionContext(Context):
    """A question behind joined blocks; adds up the attention that each token of their text gets."""

    def __init__(self, rotary: Rotary, joined: JoinedBlocks, depth: int) -> None:
        self._rotary = rotary
        self._joined = joined
        self._last = depth - 1
        self.attention = torch.zeros(len(joined.ids), device=joined.ids.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        old, behind = self._joined.layers[layer], len(self._joined.ids)
        count, heads = query.shape[2], key.shape[1]
        cos, sin = self._rotary(behind + count, key)
        old_key = rotate(old.keys, cos[old.positions], sin[old.positions])
        keys = torch.cat((old_key, rotate(key[0], cos[behind:], sin[behind:])), dim=1)
        grouped = rotate(query[0], cos[behind:], sin[behind:]).reshape(heads, -1, count, key.shape[3])
        scores = (grouped @ keys[:, None].transpose(2, 3)).float() * scale
        later = torch.ones(count, count, dtype=torch.bool, device=key.device).triu(1)
        scores[..., -count:].masked_fill_(later, -torch.inf)
        scores[..., :-count].masked_fill_((old.positions < 0)[:, None, None], -torch.inf)
        weights = scores.softmax(dim=-1)
        weight_sums = weights[..., :-count].mean(dim=(1, 2))
        self.attention.index_add_(0, old.positions.clamp(min=0).flatten(), weight_sums.flatten())
        if layer == self._last:
            return None
        values = torch.cat((old.values, value[0]), dim=1)[:, None]
        return (weights.to(value.dtype) @ values).flatten(0, 1)[None].transpose(1, 2).flatten(2)


def _run(decoder: Decoder, ids: Tensor, context: Context, depth: int | None = None) -> None:
    x = decoder.embed(ids[None])
    for layer in list(decoder.layers)[:depth]:
        x = layer(x, context, None, decoder.role)


def _reencode(
    decoder: Decoder, rotary: Rotary, ahead: Sequence[tuple[KVStates, Sequence[int]]], states: KVStates,
    text: Sequence[int], like: Tensor,
) -> KVStates:  # fmt: skip
    """A block encoded again behind what stands ahead; of its new states, those that it had."""
    blocks, texts = zip(*ahead, (states, text), strict=True)
    joined = JoinedBlocks.of(blocks, texts, like)
    own = torch.arange(joined.starts[-1], len(joined.ids), device=like.device)
    return joined.with_states(own, recompute(decoder, rotary, joined, own), all_heads=False)[-1]
