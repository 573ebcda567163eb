"""A cache of KV blocks on the device that reads them: the most recently used ones, with prefetch."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from cachetools import LRUCache
from torch import Tensor

from compmem.config import KV_CACHE_BYTES
from compmem.locks import Lock
from compmem.schema import KVStates

Load = Callable[[Sequence[int]], Sequence[KVStates]]
"""Loads KV states of blocks by number."""


class KVCache:
    """Blocks by number on one device, in its compute dtype; any number of threads may use it.

    Args:
        device: Where the blocks are read.
        dtype: The dtype of the reader.
        budget: Bytes that may be cached between uses. The blocks of a call are kept for as long as it needs them.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype, *, budget: int = KV_CACHE_BYTES) -> None:
        self._device = device
        self._dtype = dtype
        self._cache: LRUCache[int, KVStates] = LRUCache(budget, getsizeof=_bytes)
        self._guard = Lock()

    def __len__(self) -> int:
        return len(self._cache)

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return int(self._cache.currsize)

    def get(self, numbers: Sequence[int], load: Load) -> list[KVStates]:
        """The blocks with these numbers, in order; missing ones are loaded and cached."""
        with self._guard:
            found = {n: self._cache[n] for n in numbers if n in self._cache}
        missing = [n for n in dict.fromkeys(numbers) if n not in found]
        if missing:
            new = {n: self._to_device(states) for n, states in zip(missing, load(missing), strict=True)}
            self._keep(new)
            found.update(new)
        return [found[n] for n in numbers]

    def stream(self, numbers: Sequence[int], load: Load, *, size: int) -> Iterator[list[KVStates]]:
        """The blocks with these numbers in groups of `size`; each is fetched while the previous one is processed."""
        groups = [numbers[at : at + size] for at in range(0, len(numbers), size)]
        if not groups:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="compmem-kv") as pool:
            next_group = pool.submit(self.get, groups[0], load)
            for following in groups[1:]:
                states = next_group.result()
                next_group = pool.submit(self.get, following, load)
                yield states
            yield next_group.result()

    def _keep(self, new: dict[int, KVStates]) -> None:
        with self._guard:
            for number, states in new.items():
                if _bytes(states) <= self._cache.maxsize:
                    self._cache[number] = states

    def _to_device(self, states: KVStates) -> KVStates:
        positions = None if states.positions is None else states.positions.to(self._device)
        return replace(
            states,
            keys=self._tensor_to_device(states.keys),
            values=self._tensor_to_device(states.values),
            positions=positions,
        )

    def _tensor_to_device(self, tensor: Tensor) -> Tensor:
        if self._device.type == "cuda" and not tensor.is_cuda:
            # From pinned memory, the copy overlaps with computation on the device.
            return tensor.pin_memory().to(self._device, self._dtype, non_blocking=True)
        return tensor.to(self._device, self._dtype)


def _bytes(states: KVStates) -> int:
    tensors = (states.keys, states.values, states.positions, states.lengths)
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)
