"""Blocks that see one another, without training: states of recalled blocks computed again in their common context.

Each chunk was compressed alone, so a block that is read behind others knows nothing of them. The methods here choose
tokens of the later blocks and run them again, each behind everything that stands before it in the joined text: the head
of the turn, the stored states of earlier blocks and of its own, and the other chosen tokens. Their new states take the
places of the old ones. Keys are kept before rotation; the chosen tokens are run at their positions in the joined text.

* `epic`: the first tokens of every block but the first (LegoLink, 2410.15332).
* `prophetkv`: the tokens that the question attends to most, over all layers (2602.02579).
* `cacheblend`: the tokens whose values in the second layer change most (2405.16444); there the share shrinks from layer
  to layer, here it is chosen once.
* `graph-kv`: all tokens of every later block, each block behind the first one alone (2506.07334).

The first block is never changed: where it stands, it was encoded. With every token chosen and nothing pruned, the
result is that of reading the joined text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from compmem.backbone.backbone import Backbone
from compmem.backbone.decoder import Context, Decoder
from compmem.backbone.prefix_context import check_fusion, check_states
from compmem.backbone.prune import prune
from compmem.backbone.rotary import Rotary, rotate
from compmem.config import KVFusion
from compmem.schema import KVStates

SHARE: Final = 0.2
"""Share of the later blocks' tokens that `prophetkv` and `cacheblend` choose."""
FIRST: Final = 16
"""Tokens of each later block that `epic` chooses."""


@dataclass(frozen=True, slots=True)
class Joined:
    """Blocks one after the other, and the text that they stand for."""

    keys: Tensor
    """`[layers, kv_heads, slots, head_dim]`, before rotation."""
    values: Tensor
    """As `keys`."""
    positions: Tensor
    """Position in the text of the token that each slot is of, `[layers, kv_heads, slots]`."""
    ids: Tensor
    """The text, `[tokens]`."""
    starts: tuple[int, ...]
    """Position of the first token of each block."""

    @classmethod
    def of(cls, blocks: Sequence[KVStates], texts: Sequence[Sequence[int]], like: Tensor) -> "Joined":
        """Blocks with the token ids of their texts, on device and in type of `like`.

        Raises:
            ValueError: A block does not belong to its text.
        """
        starts, positions = list[int](), list[Tensor]()
        begin = 0
        for states, text in zip(blocks, texts, strict=True):
            positions.append(begin + _positions(states, len(text)).to(like.device))
            starts.append(begin)
            begin += len(text)
        return cls(
            keys=torch.cat([states.keys.to(like.device, like.dtype) for states in blocks], dim=2),
            values=torch.cat([states.values.to(like.device, like.dtype) for states in blocks], dim=2),
            positions=torch.cat(positions, dim=2),
            ids=torch.tensor([i for text in texts for i in text], device=like.device),
            starts=tuple(starts),
        )


def fuse(
    backbone: Backbone,
    blocks: Sequence[KVStates],
    texts: Sequence[Sequence[int]],
    asked: Sequence[int],
    *,
    methods: Sequence[KVFusion],
    share: float = SHARE,
    first: int = FIRST,
) -> list[KVStates]:
    """The blocks with a part of their states computed again, of the same shapes; of several methods, the union.

    Args:
        backbone: The stock model that compressed them.
        blocks: Blocks in the order in which they are read.
        texts: The token ids that each was compressed from.
        asked: Token ids of the question.
        methods: How tokens are chosen.
        share: Share of the later blocks' tokens that `prophetkv` and `cacheblend` choose.
        first: Tokens of each later block that `epic` chooses.

    Raises:
        ValueError: A block does not belong to its text or to this backbone, its heads have different numbers of
            states, the question is empty, or the text is larger than the context.
    """
    _check(backbone, blocks, texts, asked)
    if len(blocks) < 2 or set(methods) <= {"none", "ape"}:
        return list(blocks)
    check_fusion(blocks, methods)
    decoder, rotary, fixed = backbone.decoder, backbone.rotary, 1
    like = decoder.embed_tokens.weight
    if lead := backbone.lead:
        blocks, texts, fixed = [*prune(decoder, rotary, [lead], ratio=1), *blocks], [lead, *texts], 2
    if "graph-kv" in methods:
        ahead = [*zip(blocks[:fixed], texts[:fixed], strict=True)]
        later = zip(blocks[fixed:], texts[fixed:], strict=True)
        blocks = [*blocks[:fixed], *(_behind(decoder, rotary, ahead, *one, like) for one in later)]
    joined = Joined.of(blocks, texts, like)
    chosen = _chosen(backbone, joined, fixed, asked, methods, share, first)
    if not chosen:
        return list(blocks[fixed - 1 :])
    keys, values = recompute(decoder, rotary, joined, chosen)
    return _apart(keys, values, blocks)[fixed - 1 :]


def _chosen(
    backbone: Backbone, joined: Joined, fixed: int, asked: Sequence[int], methods: Sequence[KVFusion], share: float,
    first: int,
) -> list[int]:  # fmt: skip
    """Positions of the tokens to compute again, none of them in the first `fixed` blocks."""
    begin, end = joined.starts[fixed], len(joined.ids)
    count, chosen = round(share * (end - begin)), set[int]()
    if "epic" in methods:
        pairs = pairwise((*joined.starts[fixed:], end))
        chosen.update(i for start, stop in pairs for i in range(start, min(start + first, stop)))
    scorers: dict[KVFusion, Callable[[], Tensor]] = {
        "prophetkv": lambda: attention_to(backbone.decoder, backbone.rotary, joined, asked),
        "cacheblend": lambda: value_change(backbone.decoder, backbone.rotary, joined, begin),
    }
    for name, score in scorers.items():
        if name in methods and count:
            chosen.update((begin + score()[begin:].topk(count).indices).tolist())
    return sorted(chosen)


def _check(
    backbone: Backbone, blocks: Sequence[KVStates], texts: Sequence[Sequence[int]], asked: Sequence[int]
) -> None:
    if backbone.memory.trained:
        raise ValueError("only blocks of a stock model can be fused: memory tokens are no tokens of the text")
    if (total := len(backbone.lead) + sum(map(len, texts)) + len(asked)) > backbone.context:
        raise ValueError(f"blocks of {total} tokens of text are larger than the context of {backbone.context}")
    if not asked:
        raise ValueError("the question has no tokens")
    check_states([blocks], backbone.shape)


def recompute(
    decoder: Decoder, rotary: Rotary, joined: Joined, chosen: Sequence[int], *, depth: int | None = None
) -> tuple[Tensor, Tensor]:
    """Keys and values of all slots, those of the tokens at the chosen positions computed again in the first layers."""
    places = torch.tensor(chosen, device=joined.ids.device)
    layers = list(decoder.layers)[:depth]
    context = _Recomputing(rotary, joined, places, len(layers))
    _run(layers, decoder.embed(joined.ids[places][None]), context)
    return torch.stack(context.keys), torch.stack(context.values)


def attention_to(decoder: Decoder, rotary: Rotary, joined: Joined, asked: Sequence[int]) -> Tensor:
    """Attention `[tokens]` that a question behind the blocks pays to each token of the text, summed over the layers."""
    context = _Asking(rotary, joined, len(decoder.layers))
    _run(list(decoder.layers), decoder.embed(torch.tensor([list(asked)], device=joined.ids.device)), context)
    return context.attention


def value_change(decoder: Decoder, rotary: Rotary, joined: Joined, begin: int) -> Tensor:
    """Squared change `[tokens]` of each token's values in the second layer, where all from `begin` on see one another.

    In the first layer a token's values depend on nothing but the token.
    """
    depth = min(2, len(decoder.layers))
    _, values = recompute(decoder, rotary, joined, range(begin, len(joined.ids)), depth=depth)
    change = (values[-1].float() - joined.values[depth - 1].float()).square().sum(dim=-1)
    return change.new_zeros(len(joined.ids)).index_add_(0, joined.positions[depth - 1].flatten(), change.flatten())


class _Recomputing(Context):
    """Chosen tokens of the text among the stored states of all others; keeps the states that result."""

    def __init__(self, rotary: Rotary, joined: Joined, chosen: Tensor, depth: int) -> None:
        self._rotary = rotary
        self._joined = joined
        self._chosen = chosen
        self._last = depth - 1
        self._number = torch.full_like(joined.ids, -1)
        self._number[chosen] = torch.arange(len(chosen), device=chosen.device)
        self._among = torch.ones(len(chosen), len(chosen), dtype=torch.bool, device=chosen.device).tril()
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        old_key, old_value = self._joined.keys[layer], self._joined.values[layer]
        positions = self._joined.positions[layer]
        number = self._number[positions]
        again = number >= 0
        index = number.clamp(min=0)[..., None].expand_as(old_key)
        self.keys.append(torch.where(again[..., None], key[0].gather(1, index), old_key))
        self.values.append(torch.where(again[..., None], value[0].gather(1, index), old_value))
        if layer == self._last:
            return None
        cos, sin = self._rotary(len(self._joined.ids), key)
        mine = cos[self._chosen], sin[self._chosen]
        # A head that pruned a chosen token sees its new state all the same while the tokens are run.
        stored = (positions[:, None] <= self._chosen[:, None]) & ~again[:, None]
        visible = torch.cat((stored, self._among.expand(len(stored), -1, -1)), dim=2)
        return scaled_dot_product_attention(
            rotate(query, *mine),
            torch.cat((rotate(old_key, cos[positions], sin[positions])[None], rotate(key, *mine)), dim=2),
            torch.cat((old_value[None], value), dim=2),
            attn_mask=visible.repeat_interleave(query.shape[1] // key.shape[1], dim=0)[None],
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        ).transpose(1, 2).flatten(2)  # fmt: skip


class _Asking(Context):
    """A question behind joined blocks; adds up the attention that each token of their text gets."""

    def __init__(self, rotary: Rotary, joined: Joined, depth: int) -> None:
        self._rotary = rotary
        self._joined = joined
        self._last = depth - 1
        self.attention = torch.zeros(len(joined.ids), device=joined.ids.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float
    ) -> Tensor | None:
        positions, behind = self._joined.positions[layer], len(self._joined.ids)
        count, heads = query.shape[2], key.shape[1]
        cos, sin = self._rotary(behind + count, key)
        old_key = rotate(self._joined.keys[layer], cos[positions], sin[positions])
        keys = torch.cat((old_key, rotate(key[0], cos[behind:], sin[behind:])), dim=1)
        grouped = rotate(query[0], cos[behind:], sin[behind:]).reshape(heads, -1, count, key.shape[3])
        scores = (grouped @ keys[:, None].transpose(2, 3)).float() * scale
        later = torch.ones(count, count, dtype=torch.bool, device=key.device).triu(1)
        scores[..., -count:].masked_fill_(later, -torch.inf)
        weights = scores.softmax(dim=-1)
        paid = weights[..., :-count].mean(dim=(1, 2))
        self.attention.index_add_(0, positions.flatten(), paid.flatten())
        if layer == self._last:
            return None
        values = torch.cat((self._joined.values[layer], value[0]), dim=1)[:, None]
        return (weights.to(value.dtype) @ values).flatten(0, 1)[None].transpose(1, 2).flatten(2)


def _run(layers: Sequence[torch.nn.Module], x: Tensor, context: Context) -> None:
    for layer in layers:
        x = layer(x, context, None, None)


def _behind(
    decoder: Decoder, rotary: Rotary, ahead: Sequence[tuple[KVStates, Sequence[int]]], states: KVStates,
    text: Sequence[int], like: Tensor,
) -> KVStates:  # fmt: skip
    """A block encoded again behind what stands ahead; of its new states, those that it had."""
    blocks, texts = zip(*ahead, (states, text), strict=True)
    joined = Joined.of(blocks, texts, like)
    keys, values = recompute(decoder, rotary, joined, range(joined.starts[-1], len(joined.ids)))
    return _apart(keys, values, blocks)[-1]


def _apart(keys: Tensor, values: Tensor, blocks: Sequence[KVStates]) -> list[KVStates]:
    sizes = [states.keys.shape[2] for states in blocks]
    parts = zip(blocks, torch.split(keys, sizes, dim=2), torch.split(values, sizes, dim=2), strict=True)
    return [KVStates(keys=key, values=value, positions=states.positions) for states, key, value in parts]


def _positions(states: KVStates, tokens: int) -> Tensor:
    """The position within its text of every slot of a block."""
    shape = states.keys.shape[:3]
    if states.positions is None:
        if shape[2] != tokens:
            raise ValueError(f"a block has {shape[2]} states for {tokens} tokens, and no positions")
        return torch.arange(tokens).expand(shape)
    if states.positions.shape != shape or not 0 <= int(states.positions.min()) <= int(states.positions.max()) < tokens:
        raise ValueError(f"the positions of a block are not those of its {tokens} tokens")
    return states.positions.long()
