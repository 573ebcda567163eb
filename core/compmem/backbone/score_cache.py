"""Importance scores of recent chunks, for training: a rollout and its update compress the same chunks.

So the update uses the same states as the rollout, even if only one of them runs under autocast.
"""

from collections.abc import Callable, Sequence

import torch
from cachetools import LRUCache
from torch import Tensor

from compmem.backbone.weights_version import weights_version

Chunks = Sequence[Sequence[int]]
"""Token ids of chunks."""


class ScoreCache:
    """The scores `[layers, kv_heads, tokens]` that a model gave to its last chunks, until its weights change.

    Args:
        weights: What the scores depend on.
        max_chunks: Chunks whose scores are kept.
    """

    def __init__(self, weights: Sequence[Tensor], max_chunks: int) -> None:
        self._weights = weights
        self._version: tuple[object, ...] | None = None
        self._cache: LRUCache[tuple[int, ...], Tensor] = LRUCache(max_chunks)

    def get(self, chunks: Chunks, compute: Callable[[Chunks], list[Tensor]]) -> list[Tensor]:
        """The scores of each chunk; `compute` gets those whose scores are not kept."""
        version = weights_version(self._weights)
        # A tensor made in inference mode cannot be used in training.
        if version is None or torch.is_inference_mode_enabled():
            return compute(chunks)
        if version != self._version:
            self._cache.clear()
            self._version = version
        requested = list(map(tuple, chunks))
        new = [chunk for chunk in dict.fromkeys(requested) if chunk not in self._cache]
        found = dict(zip(new, compute(new), strict=True)) if new else {}
        found |= {chunk: self._cache[chunk] for chunk in requested if chunk not in found}
        self._cache.update(found)
        return [found[chunk] for chunk in requested]
