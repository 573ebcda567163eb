"""The view of an index in shards: the queries of each shard, and their results merged.

The shards are asked through one function, in this process or in others. A block's number in the view is made of its
number within the shard and of the shard.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final

import numpy as np

from compmem.errors import StoreError
from compmem.locks import Lock
from compmem.schema import Chunk, Document, Filter, KVStates, MemoryBlock
from compmem.store.blocks import Numbers
from compmem.store.filtered_lexical import FilteredLexicalIndex
from compmem.store.interface import DocumentInfo, Snapshot
from compmem.store.sharded_lexical import ShardedLexicalIndex
from compmem.store.snapshot import FolderSnapshot, part_of
from compmem.store.vectors import ChunkVectors
from compmem.text.tokenize import NameKind

ALL_BLOCKS_KEY: Final = 0
"""Key of the selection of all blocks."""

Ask = Callable[[str, Mapping[int, tuple[Any, ...]]], dict[int, Any]]
"""Calls a method of `ShardPart` on some shards, each with arguments of its own; returns the result of each."""


def shard_of(document_id: str, shards: int) -> int:
    """The shard of a document."""
    return zlib.crc32(document_id.encode("utf-8", "surrogatepass")) % shards


class TermTotals:
    """Terms in all blocks of each shard, counted once a generation."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, float]] = {}
        self._guard = Lock()

    def of(self, shard: int, snapshot: Snapshot) -> float:
        """Terms in all blocks of a shard."""
        with self._guard:
            generation, total = self._known.get(shard, (-1, 0.0))
        if generation != snapshot.generation:
            total = _filtered_index(snapshot, snapshot.select(None)).length()
            with self._guard:
                self._known[shard] = (snapshot.generation, total)
        return total


def _filtered_index(shard: Snapshot, admitted: Numbers) -> FilteredLexicalIndex:
    index = shard.lexical_index(admitted)
    assert isinstance(index, FilteredLexicalIndex), "a shard has no shards"
    return index


class ShardPart:
    """What one shard answers to a view of all. Blocks have the shard's own numbers.

    Args:
        snapshot: The shard.
        length: Terms in all its blocks together.
    """

    def __init__(self, snapshot: FolderSnapshot, length: Callable[[FolderSnapshot], float]) -> None:
        self.snapshot = snapshot
        self._length = length
        self._selections: dict[int, FilteredLexicalIndex] = {}

    def count(self) -> int:
        """The number of live blocks."""
        return len(self.snapshot)

    def select(self, key: int, filter: Filter | None) -> Numbers:
        """The blocks that a filter admits, which are kept as the selection of that key."""
        found = self.snapshot.select(filter)
        self.admit(key, found)
        return found

    def admit(self, key: int, admitted: Numbers) -> None:
        """Keep these blocks, ascending, as the selection of that key."""
        self._selections[key] = _filtered_index(self.snapshot, admitted)

    def lexical_index(self, key: int) -> FilteredLexicalIndex:
        """The lexical index of a selection."""
        if key == ALL_BLOCKS_KEY and key not in self._selections:
            self.select(ALL_BLOCKS_KEY, None)
        return self._selections[key]

    def statistics(self, key: int, terms: Sequence[str]) -> tuple[dict[str, int], float]:
        """The number of blocks of a selection that contain each term, and the number of terms in all its blocks."""
        if key == ALL_BLOCKS_KEY:
            return self.snapshot.lexical_index().document_frequency(terms), self._length(self.snapshot)
        return self.lexical_index(key).document_frequency(terms), self.lexical_index(key).length()

    def rank(
        self, key: int, queries: Sequence[Mapping[str, int]], limit: int, blocks: int, mean_length: float
    ) -> list[list[tuple[int, float]]]:
        """The best blocks of a selection for each query; see `FilteredLexicalIndex.rank`."""
        return [self.lexical_index(key).rank(query, limit, blocks, mean_length) for query in queries]

    def phrases(self, key: int, runs: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """The blocks of a selection that contain each run of words."""
        return self.lexical_index(key).phrases(runs, limit)

    def blocks_by_name(self, key: int, names: Sequence[str], per_name: int) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks of a selection with each name."""
        return self.lexical_index(key).blocks_by_name(names, per_name)

    def call_many(self, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        """The result of each of these methods."""
        return [getattr(self, name)(*args) for name, args in calls]

    def chunks(self, blocks: Sequence[int]) -> list[Chunk]:
        """The chunks of blocks."""
        return self.snapshot.chunks(blocks)

    def blocks(self, blocks: Sequence[int], kv: bool) -> list[MemoryBlock]:
        """Blocks with their vectors, and with their KV states if `kv`."""
        return self.snapshot.blocks(blocks, kv=kv)

    def kv_states(self, blocks: Sequence[int]) -> list[KVStates]:
        """The KV states of blocks."""
        return self.snapshot.kv_states(blocks)

    def documents(self, filter: Filter | None, offset: int, limit: int | None) -> list[DocumentInfo]:
        """At most `limit` of the documents that a filter admits, behind the first `offset`."""
        return list(self.snapshot.documents(filter, offset=offset, limit=limit))

    def count_documents(self, filter: Filter | None) -> int:
        """The number of documents that a filter admits."""
        return self.snapshot.count_documents(filter)

    def document(self, document_id: str) -> Document | None:
        """A document with its chunks, or None."""
        return self.snapshot.document(document_id)

    def metadata(self, document_id: str) -> Mapping[str, Any] | None:
        """The metadata of a document, or None."""
        return self.snapshot.metadata(document_id)

    def document_blocks(self, document_id: str) -> list[int]:
        """Numbers of a document's blocks in order."""
        return self.snapshot.document_blocks(document_id)


def ask_here(parts: Sequence[ShardPart]) -> Ask:
    """Asks shards of this process, one after another."""
    return lambda name, asked: {shard: getattr(parts[shard], name)(*args) for shard, args in asked.items()}


class ShardedSnapshot(Snapshot):
    """Views of all shards, as one. Blocks have numbers of their own: number within the shard * shards + shard.

    Args:
        ask: Asks the shards.
        generations: The generation of each shard.
        blocks: The number of live blocks. None: the shards are asked.
    """

    def __init__(self, ask: Ask, generations: Sequence[int], blocks: int | None = None) -> None:
        self._ask = ask
        self._shards = len(generations)
        self._generation = combine_generations(generations)
        self._blocks = blocks
        self._keys: list[tuple[Numbers, int]] = []
        self._next_key = count(ALL_BLOCKS_KEY + 1)
        self._everything: ShardedLexicalIndex | None = None

    @property
    def generation(self) -> int:
        """A number that differs between views of different commits."""
        return self._generation

    def __len__(self) -> int:
        if self._blocks is None:
            self._blocks = sum(self.ask_all("count"))
        return self._blocks

    def ask_all(self, name: str, *args: Any) -> list[Any]:
        """What a method of `ShardPart` returns on each shard, with the same arguments."""
        return [*self._ask(name, dict.fromkeys(range(self._shards), args)).values()]

    def select(self, filter: Filter | None) -> Numbers:
        """Numbers of the live blocks that a filter admits, ascending. Raises what `Snapshot.select` raises."""
        key = ALL_BLOCKS_KEY if filter is None else next(self._next_key)
        parts = self.ask_all("select", key, filter)
        found = np.sort(np.concatenate([self.numbers(n, own) for n, own in enumerate(parts)]))
        self._keys.append((found, key))
        return found

    def key(self, admitted: Numbers | None) -> int:
        """The key under which the shards keep these blocks; those that `select` has returned are known there."""
        if admitted is None:
            return ALL_BLOCKS_KEY
        known = next((key for held, key in self._keys if held is admitted), None)
        if known is None:
            known = next(self._next_key)
            self._ask("admit", {n: (known, self._blocks_of_shard(n, admitted)) for n in range(self._shards)})
            self._keys.append((admitted, known))
        return known

    def chunks(self, blocks: Sequence[int] | Numbers) -> list[Chunk]:
        """The chunks of blocks by number, in the order asked. Raises what `Snapshot.chunks` raises."""
        return self._gathered("chunks", blocks)

    def blocks(self, blocks: Sequence[int] | Numbers, *, kv: bool = True) -> list[MemoryBlock]:
        """Blocks by number, in the order asked. Raises what `Snapshot.blocks` raises."""
        return self._gathered("blocks", blocks, kv)

    def kv_states(self, blocks: Sequence[int] | Numbers) -> list[KVStates]:
        """The KV states alone, in the order asked. Raises what `Snapshot.kv_states` raises."""
        return self._gathered("kv_states", blocks)

    def vectors_by_folder(self) -> list[ChunkVectors]:
        """Refused: the vectors are where the shards are, which are asked for the nearest blocks."""
        raise StoreError("the vectors of these shards are in other processes")

    def lexical_index(self, admitted: Numbers | None = None) -> ShardedLexicalIndex:
        """The lexical indexes of all shards as one, of these blocks, ascending by number. None: of all live blocks."""
        if admitted is not None:
            return ShardedLexicalIndex(self.ask_all, self.number, self.key(admitted), len(admitted))
        if self._everything is None:
            self._everything = ShardedLexicalIndex(self.ask_all, self.number, ALL_BLOCKS_KEY, len(self))
        return self._everything

    def documents(
        self, filter: Filter | None = None, *, offset: int = 0, limit: int | None = None
    ) -> Iterator[DocumentInfo]:
        """The documents that a filter admits, shard by shard: at most `limit` of them behind `offset`."""
        wanted, before = part_of(offset, limit), 0
        asked = dict[int, tuple[Any, ...]]()
        for shard, size in enumerate(self.ask_all("count_documents", filter)):
            first, end, _ = wanted.indices(before + size)
            if first < end and end > before:
                begin = max(first - before, 0)
                asked[shard] = (filter, begin, end - before - begin)
            before += size
        for found in self._ask("documents", asked).values() if asked else ():
            yield from found

    def count_documents(self, filter: Filter | None = None) -> int:
        """The number of documents that a filter admits."""
        return sum(self.ask_all("count_documents", filter))

    def document(self, document_id: str) -> Document | None:
        """A document with its text, or None."""
        shard = shard_of(document_id, self._shards)
        found: Document | None = self._ask("document", {shard: (document_id,)})[shard]
        return found

    def metadata(self, document_id: str) -> Mapping[str, Any] | None:
        """The metadata of a document, or None."""
        shard = shard_of(document_id, self._shards)
        found: Mapping[str, Any] | None = self._ask("metadata", {shard: (document_id,)})[shard]
        return found

    def document_blocks(self, document_id: str) -> list[int]:
        """Numbers of a document's blocks in order; none for an unknown document."""
        shard = shard_of(document_id, self._shards)
        return [self.number(shard, own) for own in self._ask("document_blocks", {shard: (document_id,)})[shard]]

    def number(self, shard: int, block: int) -> int:
        """The number in this view of a block of a shard."""
        return block * self._shards + shard

    def numbers(self, shard: int, blocks: Numbers) -> Numbers:
        """The numbers in this view of blocks of a shard."""
        return blocks * self._shards + shard

    def _blocks_of_shard(self, shard: int, numbers: Numbers) -> Numbers:
        own: Numbers = numbers[numbers % self._shards == shard] // self._shards
        return own

    def _gathered(self, name: str, blocks: Sequence[int] | Numbers, *args: Any) -> list[Any]:
        """What a method of `ShardPart` returns for each of these blocks, of the shards that have any of them."""
        asked = np.asarray(blocks, np.int64)
        own = {
            shard: self._blocks_of_shard(shard, asked).tolist() for shard in np.unique(asked % self._shards).tolist()
        }
        parts = self._ask(name, {shard: (numbers, *args) for shard, numbers in own.items()}) if own else {}
        found = {
            self.number(shard, number): one
            for shard, part in parts.items()
            for number, one in zip(own[shard], part, strict=True)
        }
        return [found[number] for number in asked.tolist()]


class LocalShardedSnapshot(ShardedSnapshot):
    """The view of shards that this process has opened."""

    def __init__(self, parts: Sequence[ShardPart]) -> None:
        super().__init__(ask_here(parts), [part.snapshot.generation for part in parts])
        self._parts = parts

    def vectors_by_folder(self) -> list[ChunkVectors]:
        """The whole-chunk vectors of each shard, under the numbers of this view."""
        found = [part.snapshot.vectors() for part in self._parts]
        return [vectors.renumbered(self.numbers(n, vectors.numbers)) for n, vectors in enumerate(found)]


def combine_generations(generations: Sequence[int]) -> int:
    """One number for several, each below 2**48."""
    return sum(generation << (48 * place) for place, generation in enumerate(generations))
