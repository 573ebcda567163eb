"""Shared data of the snapshots of one process: live blocks per generation, mapped files, completed checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from cachetools import LRUCache

from compmem.config import VectorType
from compmem.errors import CorruptStoreError
from compmem.kv_format import unpack
from compmem.locks import Lock
from compmem.schema import KVStates, MemoryBlock, Vectors
from compmem.store.blocks import BlockLocation, LocatedBlock, Numbers, raw_rows, read_kv_tensors
from compmem.store.folder import Folder
from compmem.store.kv import KVSegments
from compmem.store.manifest import Rows, State
from compmem.store.vectors import ChunkVectors, Raw, RowFormat, map_rows, segments_of

_SELECTIONS: Final = 64 << 20
"""Bytes of cached selections together; a larger one is not cached."""
_SELECTION: Final = 1 << 20
"""Bytes that a selection counts for at least, so that there are at most 64."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """The live blocks of one generation, ascending: their documents' keys and their vectors' rows (-1: none)."""

    generation: int
    epoch: int
    numbers: Numbers
    documents: Numbers
    rows: Numbers


class Cache:
    """What the snapshots of a store share, in one process."""

    def __init__(self, folder: Folder, vectors: VectorType) -> None:
        self.folder = folder
        self._kind = vectors
        self.kv = KVSegments(folder)
        self._guard = Lock()
        self._arrays: Arrays | None = None
        self._vectors: tuple[int, ChunkVectors] | None = None
        self._verified_segments: set[tuple[int, int, int, int]] = set()
        self._verified_kv: set[tuple[int | None, int]] = set()
        self._maps: dict[tuple[str, int], Raw] = {}
        self._frequency: tuple[int, dict[str, int]] = (-1, {})
        self._selections: LRUCache[tuple[int, str], Numbers] = LRUCache(_SELECTIONS, getsizeof=_selection_bytes)

    def arrays(self, rows: Rows, state: State) -> Arrays:
        """The arrays of this generation; if blocks were only added since the last one, only those are read."""
        with self._guard:
            known = self._arrays
            if known is not None and known.generation == state.generation:
                return known
            grown = known is not None and known.epoch == state.epoch and known.generation < state.generation
            base = known if grown else None
            new = _read_arrays(rows, state, base)
            if known is None or known.generation < state.generation:
                self._arrays = new
                if known is not None and known.epoch != new.epoch:
                    self.kv.close()  # an open segment that was removed by compaction would keep its disk space
            return new

    def layout(self, state: State) -> RowFormat:
        """The layout of a vector in the files of this state."""
        return RowFormat(self._kind, state.dim or 0)

    def chunk_vectors(self, rows: Rows, state: State, arrays: Arrays) -> ChunkVectors:
        """The whole-chunk vectors of this generation."""
        with self._guard:
            if self._vectors is not None and self._vectors[0] == state.generation:
                return self._vectors[1]
            layout = self.layout(state)
            placed = arrays.rows >= 0
            every = bool(placed.all())
            made = ChunkVectors(
                arrays.numbers if every else arrays.numbers[placed],
                arrays.rows if every else arrays.rows[placed],
                self.chunk_rows(state),
                layout,
                segments_of(rows, state.chunk_rows),
                self._verified_segments,
                state.vectors,
            )
            if self._vectors is None or self._vectors[0] < state.generation:
                self._vectors = (state.generation, made)
            return made

    def chunk_rows(self, state: State) -> Raw:
        """The committed rows of the file of whole-chunk vectors."""
        return self._map("chunks", state, state.chunk_rows)

    def sentence_rows(self, state: State) -> Raw:
        """The committed rows of the file of sentence vectors."""
        return self._map("sentences", state, state.sentence_rows)

    def load(self, blocks: Sequence[LocatedBlock], state: State, *, kv: bool = True) -> list[MemoryBlock]:
        """Whole blocks: vectors and, by default, KV states, read and checked.

        Raises:
            CorruptStoreError: They do not match their checksums.
        """
        locations = [block.location for block in blocks]
        vectors: list[Vectors | None] = [None] * len(locations)
        dense = [i for i, location in enumerate(locations) if location.row is not None]
        if dense:
            chunk_rows, sentence_rows = self.chunk_rows(state), self.sentence_rows(state)
            layout = self.layout(state)
            raws = [raw_rows(locations[i], chunk_rows, sentence_rows, layout) for i in dense]
            every = layout.unpack(np.concatenate(raws))
            ends = np.cumsum([len(raw) for raw in raws])
            for i, own in zip(dense, np.split(every, ends[:-1]), strict=True):
                vectors[i] = own
        return [
            MemoryBlock(
                chunk=block.chunk,
                vectors=vectors[i],
                kv=self.kv_states(block.location) if kv and block.location.kv is not None else None,
            )
            for i, block in enumerate(blocks)
        ]

    def kv_states(self, location: BlockLocation) -> KVStates:
        """A block's KV states; the checksum is verified once per process.

        Raises:
            CorruptStoreError: It does not match.
        """
        known = (location.kv, location.number) in self._verified_kv
        tensors = read_kv_tensors(location, self.kv, verify=not known)
        self._verified_kv.add((location.kv, location.number))
        return unpack(tensors)

    def frequency(self, generation: int) -> dict[str, int]:
        """Document frequencies counted so far in this generation."""
        with self._guard:
            if self._frequency[0] < generation:
                self._frequency = (generation, {})
            return self._frequency[1] if self._frequency[0] == generation else {}  # an older snapshot counts by itself

    def selection(self, key: tuple[int, str]) -> Numbers | None:
        """What a recently used filter admits, or None."""
        with self._guard:
            return self._selections.get(key)

    def put_selection(self, key: tuple[int, str], numbers: Numbers) -> None:
        """Cache what a filter admits, unless it is larger than the cache."""
        if numbers.nbytes <= _SELECTIONS:
            with self._guard:
                self._selections[key] = numbers

    def close(self) -> None:
        """Close mapped files."""
        with self._guard:
            self.kv.close()
            self._maps = {}
            self._vectors = None

    def _map(self, name: str, state: State, rows: int) -> Raw:
        with self._guard:
            held = self._maps.get((name, state.vectors))
            if held is None or len(held) < rows:
                file = self.folder.chunks(state.vectors) if name == "chunks" else self.folder.sentences(state.vectors)
                held = map_rows(self.folder, file, rows, self.layout(state).width)
                self._maps = {k: v for k, v in self._maps.items() if k[1] == state.vectors}
                self._maps[name, state.vectors] = held
            return held[:rows]


def _selection_bytes(numbers: Numbers) -> int:
    return max(numbers.nbytes, _SELECTION)


def _read_arrays(rows: Rows, state: State, base: Arrays | None) -> Arrays:
    after = int(base.numbers[-1]) if base is not None and len(base.numbers) else 0
    sql = "SELECT number, document, coalesce(row, -1) FROM blocks WHERE number > ? ORDER BY number"
    found = rows(sql, after)
    try:
        table = np.array(found, np.int64).reshape(-1, 3).T
    except (ValueError, TypeError, OverflowError) as error:
        raise CorruptStoreError(f"the rows of blocks cannot be read: {error}") from error
    if base is not None:
        table = np.concatenate([np.stack([base.numbers, base.documents, base.rows]), table], axis=1)
    if table.size and int(table[0].max()) >= state.next_block:
        raise CorruptStoreError(f"the number of a block is above the largest one, {state.next_block - 1}")
    if table.size and int(table[2].max()) >= state.chunk_rows:
        raise CorruptStoreError("a block's vector is outside its file")
    numbers, documents, placed = (np.ascontiguousarray(column) for column in table)
    for column in (numbers, documents, placed):
        column.setflags(write=False)
    return Arrays(state.generation, state.epoch, numbers, documents, placed)
