"""Parallel encoding: all recalled blocks at the same positions, and attention to them scaled (APE, 2502.05431).

Each block keeps the positions that it was encoded at, directly after the chat prefix. The prompt comes after the
longest block.
Attention to the blocks is made sharper by a temperature T, and the share that they get together is scaled by S: their
scores s / T are shifted by (S T - 1) log sum exp(s / T), and one softmax is taken over blocks, chat prefix and prompt.
"""

from collections.abc import Iterator, Sequence
from typing import Final

import torch
from torch import Tensor

from compmem.backbone.backbone import Backbone
from compmem.backbone.chat_prefix import move_prefix_to_blocks
from compmem.backbone.decode import check_generation
from compmem.backbone.decoder import Context
from compmem.backbone.prefix_context import check_states
from compmem.backbone.rotary import rotate
from compmem.backbone.stop import StopDetector
from compmem.config import SHARED_BUDGET_METHODS
from compmem.deadline import seconds_left
from compmem.schema import KVStates

ATTENTION_TEMPERATURE: Final = 0.9
"""Temperature T of attention to the blocks."""
ATTENTION_SCALE: Final = 0.9
"""Scale S of what they get together."""


def stream_parallel(
    backbone: Backbone,
    prompt: Sequence[int],
    blocks: Sequence[KVStates],
    *,
    max_new_tokens: int,
    stop_strings: Sequence[str] = (),
    stop_on_repetition: bool = False,
    temperature: float = ATTENTION_TEMPERATURE,
    scale: float = ATTENTION_SCALE,
) -> Iterator[int]:
    """The likeliest tokens behind blocks that stand side by side, as they come; see `Backbone.stream`.

    Args:
        backbone: The model that compressed the blocks; it reads with the reasoner's adapter, if it has one.
        prompt: Token ids behind the blocks.
        blocks: At least one.
        max_new_tokens: Maximum number of tokens.
        stop_strings: Texts that end it.
        stop_on_repetition: End a text that says the same over and over.
        temperature: Temperature of attention to the blocks.
        scale: Scale of what the blocks get together.

    Raises:
        ValueError: There is no block, a block is of another backbone or its heads have different numbers of states, or
            all does not fit in the context.
        OverdueError: The time for a question is up.
    """
    if not blocks:
        raise ValueError("no block to read")
    check_generation(max_new_tokens, 0.0)
    check_states([blocks], backbone.shape)
    if any(states.lengths is not None for states in blocks):
        raise ValueError(
            "kv_fusion='ape' needs equally many KV states in each head: it cannot read blocks that were made with "
            f"kv_pruning={' or '.join(map(repr, SHARED_BUDGET_METHODS))}"
        )
    prefix_ids = backbone.chat_prefix_ids
    [rest], [row] = move_prefix_to_blocks(prefix_ids, backbone.chat_prefix_states, [prompt], [blocks])
    context = _ParallelContext(
        backbone, row[0] if prefix_ids else None, row[1:] if prefix_ids else row, temperature, scale
    )
    if context.begin + len(rest) + max_new_tokens > backbone.context:
        raise ValueError(f"a prompt of {len(rest)} tokens is larger than the context of {backbone.context}")
    stop = StopDetector(backbone.tokenizer, backbone.end_ids, stop_strings, stop_on_repetition=stop_on_repetition)
    ids = list(rest)
    for _ in range(max_new_tokens):
        seconds_left()
        hidden = backbone.decoder(torch.tensor([ids], device=backbone.device), context, role="reasoner")
        ids = [int(backbone.logits(hidden[0, -1]).argmax())]
        yield from stop.append(ids)
        if stop.done:
            return


class _ParallelContext(Context):
    """A prompt, and what is written behind it, that attends to blocks standing side by side."""

    def __init__(
        self,
        backbone: Backbone,
        chat_prefix: KVStates | None,
        blocks: Sequence[KVStates],
        temperature: float,
        scale: float,
    ) -> None:
        like = backbone.decoder.embed_tokens.weight
        self._prefix_tokens = chat_prefix.keys.shape[2] if chat_prefix else 0
        self.begin = self._prefix_tokens + max(states.keys.shape[2] for states in blocks)
        """Position of the prompt's first token."""
        self._rotary, self._temperature, self._shift = backbone.rotary, temperature, scale * temperature - 1
        cos, sin = self._rotary(self.begin, like)

        def rotate_from(states: KVStates, start: int) -> Tensor:
            end = start + states.keys.shape[2]
            return rotate(states.keys.to(like.device, like.dtype), cos[start:end], sin[start:end])

        self._keys = torch.cat([rotate_from(states, self._prefix_tokens) for states in blocks], dim=2)
        self._values = torch.cat([states.values.to(like.device, like.dtype) for states in blocks], dim=2)
        none = self._keys[:, :, :0]
        keys = rotate_from(chat_prefix, 0) if chat_prefix else none
        values = chat_prefix.values.to(like.device, like.dtype) if chat_prefix else none
        self._near = list(zip(keys, values, strict=True))
        """Rotated keys and values of chat prefix, prompt and what is written, by layer."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float) -> Tensor:
        count, (old_keys, old_values) = query.shape[2], self._near[layer]
        start = self.begin + old_keys.shape[1] - self._prefix_tokens
        cos, sin = (table[start:] for table in self._rotary(start + count, key))
        keys = torch.cat((old_keys, rotate(key[0], cos, sin)), dim=1)
        values = torch.cat((old_values, value[0]), dim=1)
        self._near[layer] = (keys, values)
        grouped = rotate(query[0], cos, sin).reshape(key.shape[1], -1, count, key.shape[3]).float() * scale
        far = grouped @ self._keys[layer][:, None].transpose(2, 3).float() / self._temperature
        far = far + self._shift * far.logsumexp(dim=-1, keepdim=True)
        near = grouped @ keys[:, None].transpose(2, 3).float()
        later = torch.ones(count, count, dtype=torch.bool, device=key.device).triu(1)
        near[..., -count:].masked_fill_(later, -torch.inf)
        weights = torch.cat((far, near), dim=-1).softmax(dim=-1).to(value.dtype)
        read = weights @ torch.cat((self._values[layer], values), dim=1)[:, None]
        return read.flatten(0, 1)[None].transpose(1, 2).flatten(2)
