"""The blocks of one question, each read and parsed once."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from compmem.gate import ParsedBlock, parse_windows
from compmem.locks import Lock
from compmem.schema import KVStates, MemoryBlock, Vectors

Parsed = tuple[MemoryBlock, tuple[ParsedBlock, ...]]
"""A block and its windows for the dense gate; no windows if it has no vectors."""


class Blocks(Protocol):
    """Source of a question's blocks: a snapshot of a store, or the results of a retriever."""

    def select(self, filter: None) -> NDArray[np.int64]:
        """Numbers of all blocks, ascending."""
        ...

    def blocks(self, blocks: Sequence[int], *, kv: bool = ...) -> list[MemoryBlock]:
        """Blocks by number, in the order given."""
        ...

    def kv_states(self, blocks: Sequence[int]) -> list[KVStates]:
        """The KV states of blocks alone, in the order given."""
        ...


class BlockCache:
    """The most recently used parsed blocks of all questions; a number is never reused for another block."""

    def __init__(self, max_blocks: int = 4096) -> None:
        self._parsed: LRUCache[int, Parsed] = LRUCache(max_blocks)
        self._guard = Lock()

    def get(self, blocks: Sequence[int]) -> dict[int, Parsed]:
        """The cached ones among these blocks."""
        with self._guard:
            return {n: self._parsed[n] for n in blocks if n in self._parsed}

    def put(self, blocks: Mapping[int, Parsed]) -> None:
        """Caches these blocks, and drops the least recently used ones."""
        with self._guard:
            self._parsed.update(blocks)


class BlockLoader:
    """The blocks of one question by number, loaded on first use.

    Args:
        source: Source of the blocks.
        cache: Parsed blocks of this and earlier questions.
    """

    def __init__(self, source: Blocks, cache: BlockCache) -> None:
        self.source = source
        self._cache = cache
        self._parsed: dict[int, Parsed] = {}

    def get(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        """The blocks, in the order given, without KV states."""
        self._load(blocks)
        return [self._parsed[n][0] for n in blocks]

    def windows(self, blocks: Sequence[int]) -> list[tuple[ParsedBlock, ...]]:
        """The windows of each block, for the dense gate."""
        self._load(blocks)
        return [self._parsed[n][1] for n in blocks]

    def vectors(self, blocks: Sequence[int]) -> Vectors:
        """The vector of each whole chunk, `[blocks, dim]`."""
        found = [block.vectors for block in self.get(blocks)]
        return np.stack([vectors[0] for vectors in found if vectors is not None])

    def _load(self, blocks: Sequence[int]) -> None:
        new = [n for n in blocks if n not in self._parsed]
        found = self._cache.get(new)
        missing = [n for n in new if n not in found]
        for number, block in zip(missing, self.source.blocks(missing, kv=False), strict=True):
            found[number] = (block, () if block.vectors is None else parse_windows(block))
        self._cache.put({n: found[n] for n in missing})
        self._parsed.update(found)
