"""The beginning of a chat turn, up to the user's text, as a prefix of everything that a stock model reads."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from compmem.backbone.weights_version import weights_version
from compmem.schema import KVStates

Prompts = Sequence[Sequence[int]]
"""Token ids of each row."""
Blocks = Sequence[Sequence[KVStates]]
"""The recalled blocks of each row, in reading order."""


class ChatPrefixCache:
    """KV states of the prefix, computed again only after the weights changed.

    Args:
        model: The layers that compute them.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cached: tuple[object, KVStates] | None = None

    def get(self, ids: list[int], compute: Callable[[], KVStates]) -> KVStates:
        """The KV states of this prefix; computed anew with gradients, or if changes of weights are not counted."""
        weights = list(self._model.parameters())
        version = weights_version(weights)
        if torch.is_grad_enabled() or version is None:
            return compute()
        key = (tuple(ids), torch.is_autocast_enabled(weights[0].device.type), version)
        cached = self._cached
        if cached is None or cached[0] != key:
            self._cached = cached = (key, compute())
        return cached[1]

    def release(self) -> None:
        """Free them."""
        self._cached = None


def move_prefix_to_blocks(
    ids: list[int], states_of: Callable[[list[int]], KVStates], prompts: Prompts, blocks: Blocks
) -> tuple[Prompts, Blocks]:
    """Prompts without the prefix, and blocks with the prefix in front. Rows without blocks are unchanged.

    Args:
        ids: Token ids of the prefix.
        states_of: Computes KV states of token ids.
        prompts: Token ids of each row.
        blocks: Recalled blocks of each row.
    """
    if not ids or not any(blocks):
        return prompts, blocks
    states = states_of(ids)
    shortened = [_without_prefix(ids, prompt) if row else prompt for prompt, row in zip(prompts, blocks, strict=True)]
    return shortened, [[states, *row] if row else row for row in blocks]


def restore_prompt_positions(hidden: Tensor, prompts: Prompts, rest: Prompts) -> Tensor:
    """Hidden states `[rows, prompt, hidden]` of shortened prompts, at their positions in the full ones, else zeros."""
    padded = hidden.new_zeros(len(prompts), max(map(len, prompts)), hidden.shape[2])
    for row, (prompt, part) in enumerate(zip(prompts, rest, strict=True)):
        padded[row, len(prompt) - len(part) : len(prompt)] = hidden[row, : len(part)]
    return padded


def _without_prefix(ids: list[int], prompt: Sequence[int]) -> Sequence[int]:
    count = len(ids)
    return prompt[count:] if count < len(prompt) and list(prompt[:count]) == ids else prompt
