"""The blocks that one question looks at, each read and parsed once."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from compmem.gate import ParsedBlock, parse_windows
from compmem.locks import Lock
from compmem.schema import KVStates, MemoryBlock, Vectors

Parsed = tuple[MemoryBlock, tuple[ParsedBlock, ...]]
"""A block and its windows as the dense gate sees them; no windows where it has no vectors."""


class Blocks(Protocol):
    """Where a question's blocks come from: a snapshot of a store, or what a retriever has returned."""

    def select(self, filter: None) -> NDArray[np.int64]:
        """Numbers of all blocks, rising."""
        ...

    def blocks(self, blocks: Sequence[int], *, kv: bool = ...) -> list[MemoryBlock]:
        """Blocks by number, in the order asked."""
        ...

    def kv_states(self, blocks: Sequence[int]) -> list[KVStates]:
        """The KV states of blocks alone, in the order asked."""
        ...


class BlockCache:
    """The parsed blocks that were used last, by any question; numbers are never given to another block."""

    def __init__(self, most: int = 4096) -> None:
        self._held: LRUCache[int, Parsed] = LRUCache(most)
        self._guard = Lock()

    def take(self, blocks: Sequence[int]) -> dict[int, Parsed]:
        """Those of the blocks that are held."""
        with self._guard:
            return {n: self._held[n] for n in blocks if n in self._held}

    def keep(self, blocks: Mapping[int, Parsed]) -> None:
        """Holds these as well, and drops those that were not used for longest."""
        with self._guard:
            self._held.update(blocks)


class BlockLoader:
    """The blocks of one question by number, loaded when they are first needed.

    Args:
        source: Where they come from.
        cache: Parsed blocks of this and earlier questions.
    """

    def __init__(self, source: Blocks, cache: BlockCache) -> None:
        self.source = source
        self._cache = cache
        self._parsed: dict[int, Parsed] = {}

    def get(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        """The blocks, in the order asked, without KV states."""
        self._load(blocks)
        return [self._parsed[n][0] for n in blocks]

    def windows(self, blocks: Sequence[int]) -> list[tuple[ParsedBlock, ...]]:
        """The windows of each block, as the dense gate sees them."""
        self._load(blocks)
        return [self._parsed[n][1] for n in blocks]

    def vectors(self, blocks: Sequence[int]) -> Vectors:
        """The vector of each whole chunk, `[blocks, dim]`."""
        found = [block.vectors for block in self.get(blocks)]
        return np.stack([vectors[0] for vectors in found if vectors is not None])

    def _load(self, blocks: Sequence[int]) -> None:
        new = [n for n in blocks if n not in self._parsed]
        found = self._cache.take(new)
        missing = [n for n in new if n not in found]
        for number, block in zip(missing, self.source.blocks(missing, kv=False), strict=True):
            found[number] = (block, () if block.vectors is None else parse_windows(block))
        self._cache.keep({n: found[n] for n in missing})
        self._parsed.update(found)
