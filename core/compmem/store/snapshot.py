"""A consistent view of one folder: the state of one commit, for as long as the view is open."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from compmem.checks import check_integer
from compmem.errors import CorruptStoreError
from compmem.schema import Chunk, Document, Filter, KVStates, MemoryBlock
from compmem.store.blocks import BATCH, LocatedBlock, Numbers, number_list, parse_metadata, read_blocks, read_locations
from compmem.store.cache import Arrays, Cache
from compmem.store.filtered_lexical import FilteredLexicalIndex
from compmem.store.filters import Node, admitted_documents, compile_filter
from compmem.store.interface import DocumentInfo, Snapshot
from compmem.store.lexical import LexicalIndex, StoredLexicalIndex
from compmem.store.manifest import Rows, read_state, storable
from compmem.store.vectors import ChunkVectors


def part_of(offset: int, limit: int | None) -> slice:
    """The slice of at most `limit` items behind the first `offset`; None: all of them.

    Raises:
        ValueError: A number is below 0.
    """
    check_integer("offset", offset, 0)
    if limit is not None:
        check_integer("limit", limit, 0)
    return slice(offset, None if limit is None else offset + limit)


class FolderSnapshot(Snapshot):
    """The state of one commit in a folder."""

    def __init__(self, rows: Rows, cache: Cache) -> None:
        self._rows = rows
        self._cache = cache
        self._state = read_state(rows)

    @property
    def generation(self) -> int:
        """The number of the commit."""
        return self._state.generation

    def __len__(self) -> int:
        return len(self._arrays.numbers)

    def select(self, filter: Filter | None) -> Numbers:
        """Numbers of the live blocks that a filter admits, ascending. None: all of them."""
        if filter is None:
            return self._arrays.numbers
        node = compile_filter(filter)
        every, documents = self._arrays.numbers, self._arrays.documents
        return self._select_cached("blocks", node, lambda: every[np.isin(documents, self._documents(node))])

    def chunks(self, blocks: Sequence[int] | Numbers) -> list[Chunk]:
        """The chunks of blocks by number, in the order given."""
        found = self._fetch(blocks)
        return [found[int(number)].chunk for number in blocks]

    def blocks(self, blocks: Sequence[int] | Numbers, *, kv: bool = True) -> list[MemoryBlock]:
        """Blocks by number with their vectors and, by default, KV states, in the order given."""
        placed = self._fetch(blocks)
        found = dict(zip(placed, self._cache.load(list(placed.values()), self._state, kv=kv), strict=True))
        return [found[int(number)] for number in blocks]

    def kv_states(self, blocks: Sequence[int] | Numbers) -> list[KVStates]:
        """The KV states alone, mapped from the files, in the order given."""
        locations = {location.number: location for location in read_locations(self._rows, blocks)}
        found: list[KVStates] = []
        for number in blocks:
            location = locations.get(int(number))
            if location is None or location.kv is None:
                raise ValueError(f"block {number} is not in this snapshot, or has no KV states")
            found.append(self._cache.kv_states(location))
        return found

    def vectors(self) -> ChunkVectors:
        """The whole-chunk vectors of all live blocks."""
        return self._cache.chunk_vectors(self._rows, self._state, self._arrays)

    def vectors_by_folder(self) -> list[ChunkVectors]:
        """The whole-chunk vectors of all live blocks, of this one folder."""
        return [self.vectors()]

    def lexical_index(self, admitted: Numbers | None = None) -> LexicalIndex:
        """The lexical index of these blocks, ascending by number; others do not affect it. None: of all live blocks."""
        if admitted is None:
            return StoredLexicalIndex(self._rows, self._arrays.numbers, self._cache.frequency(self.generation))
        return FilteredLexicalIndex(self._rows, admitted)

    def documents(
        self, filter: Filter | None = None, *, offset: int = 0, limit: int | None = None
    ) -> Iterator[DocumentInfo]:
        """The documents that a filter admits, in the order they were added: at most `limit` of them behind `offset`."""
        return self._document_infos(self._admitted(filter)[part_of(offset, limit)])

    def count_documents(self, filter: Filter | None = None) -> int:
        """The number of documents that a filter admits. Raises what `documents` raises."""
        return len(self._admitted(filter))

    def document(self, document_id: str) -> Document | None:
        """A document with its chunks, or None. If these have different contexts, it has none itself."""
        numbers = self.document_blocks(document_id)
        if not numbers:
            return None
        chunks = self.chunks(numbers)
        first = chunks[0]
        return Document(
            id=document_id,
            title=first.title,
            context=first.context if all(chunk.context == first.context for chunk in chunks) else "",
            metadata=first.metadata,
            chunks=[replace(chunk, title="", metadata={}) for chunk in chunks],
        )

    def metadata(self, document_id: str) -> Mapping[str, Any] | None:
        """The metadata of a document, or None."""
        if not storable(document_id):
            return None
        found = self._rows("SELECT metadata FROM documents WHERE id = ?", document_id)
        return next((parse_metadata(text, document_id) for (text,) in found), None)

    def document_blocks(self, document_id: str) -> list[int]:
        """Numbers of a document's blocks in order; none for an unknown document."""
        if not storable(document_id):
            return []
        sql = "SELECT number FROM blocks WHERE document = (SELECT key FROM documents WHERE id = ?) ORDER BY ordinal"
        return [int(number) for (number,) in self._rows(sql, document_id)]

    @property
    def _arrays(self) -> Arrays:
        return self._cache.arrays(self._rows, self._state)

    def _admitted(self, filter: Filter | None) -> Numbers:
        return self._documents(compile_filter({} if filter is None else filter))

    def _documents(self, node: Node) -> Numbers:
        """The keys of the documents that a filter admits, ascending."""
        return self._select_cached("documents", node, lambda: admitted_documents(node, self._rows))

    def _select_cached(self, what: str, node: Node, select: Callable[[], Numbers]) -> Numbers:
        """What a filter admits, selected once for a recently used filter."""
        key = (self.generation, what + hashlib.sha256(repr(node).encode()).hexdigest())
        found = self._cache.selection(key)
        if found is None:
            found = select()
            found.setflags(write=False)
            self._cache.put_selection(key, found)
        return found

    def _document_infos(self, keys: Numbers) -> Iterator[DocumentInfo]:
        sql = (
            "SELECT d.id, d.title, d.metadata, sum(b.characters), count(*) FROM documents AS d "
            "JOIN blocks AS b ON b.document = d.key WHERE d.key IN (SELECT value FROM json_each(?)) GROUP BY d.key"
        )
        for at in range(0, len(keys), BATCH):
            for name, title, metadata, characters, chunks in self._rows(sql, number_list(keys[at : at + BATCH])):
                yield DocumentInfo(
                    id=name, title=title, metadata=parse_metadata(metadata, name), characters=characters, chunks=chunks
                )

    def _fetch(self, blocks: Sequence[int] | Numbers) -> dict[int, LocatedBlock]:
        numbers = sorted({int(number) for number in blocks})
        found = {block.location.number: block for block in read_blocks(self._rows, numbers)}
        if len(found) < len(numbers):
            missing = next(number for number in numbers if number not in found)
            if missing in self._arrays.numbers:
                raise CorruptStoreError(f"block {missing} is listed, but has no document or no text")
            raise ValueError(f"block {missing} is not in this snapshot")
        return found
