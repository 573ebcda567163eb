"""A consistent view of a store: what one commit left, for as long as the view is open."""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compmem.config import VectorType
from compmem.errors import CorruptStoreError
from compmem.schema import Chunk, Document, KVStates, MemoryBlock, Vectors
from compmem.store import lexical
from compmem.store.filters import admitted, compile_filter
from compmem.store.folder import Folder
from compmem.store.kv import KVSegments, Parts, checksum, unpack
from compmem.store.manifest import Rows, State, read_state, storable
from compmem.store.records import parse_headings, text_crc, unpack_spans
from compmem.store.vectors import ChunkVectors, Raw, RowFormat, crc_of, map_rows, number_list, segments_of
from compmem.terms import NameKind

Filter = Mapping[str, Any] | Sequence[Any]
Numbers = NDArray[np.int64]

_SELECTIONS: Final = 32
_BATCH: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentInfo:
    """A document without its text."""

    id: str
    title: str
    metadata: Mapping[str, Any]
    characters: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Arrays:
    """The live blocks of one generation, rising by number: their documents' keys and their vectors' rows (-1: none)."""

    generation: int
    epoch: int
    numbers: Numbers
    documents: Numbers
    rows: Numbers


class Place(NamedTuple):
    """Where a block's vectors and KV states lie, in the order of the columns in `PLACE`."""

    number: int
    document: str
    row: int | None
    sentence_row: int
    sentence_rows: int
    vector_crc: int
    kv: int | None
    kv_bytes: int
    kv_crc: int

    def __str__(self) -> str:
        return f"block {self.number} of document {self.document!r}"


@dataclass(frozen=True, slots=True)
class Placed:
    """A block's chunk, and where the rest of it lies."""

    chunk: Chunk
    place: Place


class Cache:
    """What snapshots of one generation share, in one process."""

    def __init__(self, folder: Folder, vectors: VectorType) -> None:
        self.folder = folder
        self.kind = vectors
        self.kv = KVSegments(folder)
        self._guard = threading.RLock()
        self._arrays: Arrays | None = None
        self._vectors: tuple[int, ChunkVectors] | None = None
        self._verified_segments: set[tuple[int, int, int, int]] = set()
        self._verified_kv: set[tuple[int, int]] = set()
        self._maps: dict[tuple[str, int], Raw] = {}
        self._frequency: tuple[int, dict[str, int]] = (-1, {})
        self._selections: OrderedDict[tuple[int, str], Numbers] = OrderedDict()

    def arrays(self, rows: Rows, state: State) -> Arrays:
        """The arrays of this generation; where blocks were only added since the last ones, only those are read."""
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
                    self.kv.close()  # an open segment that was compacted away would keep its space
            return new

    def chunk_vectors(self, rows: Rows, state: State, arrays: Arrays) -> ChunkVectors:
        """The whole-chunk vectors of this generation."""
        with self._guard:
            if self._vectors is not None and self._vectors[0] == state.generation:
                return self._vectors[1]
            layout = RowFormat(self.kind, state.dim or 0)
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
        """The file of whole-chunk vectors, as far as this generation reaches."""
        return self._map("chunks", state, state.chunk_rows)

    def sentence_rows(self, state: State) -> Raw:
        """The file of sentence vectors, as far as this generation reaches."""
        return self._map("sentences", state, state.sentence_rows)

    def kv_states(self, place: Place, serial: int) -> KVStates:
        """A block's KV states, whose checksum is verified once a process.

        Raises:
            CorruptStoreError: It does not match.
        """
        known = (serial, place.number) in self._verified_kv
        parts = kv_parts(place, serial, self.kv, verify=not known)
        self._verified_kv.add((serial, place.number))
        return unpack(parts)

    def frequency(self, generation: int) -> dict[str, int]:
        """Document frequencies counted so far in this generation."""
        with self._guard:
            if self._frequency[0] < generation:
                self._frequency = (generation, {})
            return self._frequency[1] if self._frequency[0] == generation else {}  # an older snapshot counts for itself

    def selection(self, key: tuple[int, str]) -> Numbers | None:
        """A filter's blocks, where it was asked for lately."""
        with self._guard:
            if key in self._selections:
                self._selections.move_to_end(key)
            return self._selections.get(key)

    def keep_selection(self, key: tuple[int, str], numbers: Numbers) -> None:
        """Remember a filter's blocks."""
        with self._guard:
            self._selections[key] = numbers
            if len(self._selections) > _SELECTIONS:
                self._selections.popitem(last=False)

    def close(self) -> None:
        """Let go of mapped files."""
        with self._guard:
            self.kv.close()
            self._maps = {}
            self._vectors = None

    def _map(self, name: str, state: State, rows: int) -> Raw:
        with self._guard:
            held = self._maps.get((name, state.vectors))
            if held is None or len(held) < rows:
                file = self.folder.chunks(state.vectors) if name == "chunks" else self.folder.sentences(state.vectors)
                held = map_rows(self.folder, file, rows, RowFormat(self.kind, state.dim or 0).width)
                self._maps = {k: v for k, v in self._maps.items() if k[1] == state.vectors}
                self._maps[name, state.vectors] = held
            return held[:rows]


class Snapshot:
    """What one commit left. Made by `Store.snapshot`; any thread may use it while it is open."""

    def __init__(self, rows: Rows, cache: Cache) -> None:
        self._rows = rows
        self._cache = cache
        self._state = read_state(rows)

    @property
    def generation(self) -> int:
        """The commit this is a view of."""
        return self._state.generation

    def __len__(self) -> int:
        return len(self._arrays.numbers)

    def select(self, filter: Filter | None) -> Numbers:
        """Numbers of the live blocks that a filter admits, rising. None: all of them.

        Raises:
            ValueError: An operator is unknown, or a value is of a type that it does not take.
        """
        if filter is None:
            return self._arrays.numbers
        wanted = compile_filter(filter)
        key = (self.generation, repr(wanted))
        found = self._cache.selection(key)
        if found is None:
            found = self._arrays.numbers[np.isin(self._arrays.documents, admitted(wanted, self._rows))]
            found.setflags(write=False)
            self._cache.keep_selection(key, found)
        return found

    def chunks(self, blocks: Sequence[int] | Numbers) -> list[Chunk]:
        """The chunks of blocks by number, in the order asked.

        Raises:
            ValueError: A block is not in this snapshot.
            CorruptStoreError: A text does not match its checksum.
        """
        found = self._fetch(blocks)
        return [found[int(number)].chunk for number in blocks]

    def blocks(self, blocks: Sequence[int] | Numbers) -> list[MemoryBlock]:
        """Blocks by number with their vectors and KV states, in the order asked.

        Raises:
            ValueError: A block is not in this snapshot.
            CorruptStoreError: A text, vectors or KV states do not match their checksum.
        """
        found = {number: load_block(block, self._state, self._cache) for number, block in self._fetch(blocks).items()}
        return [found[int(number)] for number in blocks]

    def vectors(self) -> ChunkVectors:
        """The whole-chunk vectors of all live blocks that have one."""
        return self._cache.chunk_vectors(self._rows, self._state, self._arrays)

    def lexical(self, terms: Sequence[str], limit: int, admitted: Numbers | None = None) -> list[tuple[int, float]]:
        """Blocks that hold any of these terms (see `compmem.terms.terms`) with their BM25 score, best first.

        In a large index, terms that stand in very many blocks count only where no rarer ones are asked for.

        Args:
            terms: Terms, in any order; repeats count once.
            limit: Most blocks.
            admitted: Numbers of the blocks that may be named, rising. None: all.
        """
        frequency = self.document_frequency([term[: lexical.LONGEST_TERM] for term in terms])
        return lexical.ranked(self._rows, frequency, limit, self._arrays.numbers, admitted)

    def document_frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """The number of blocks that hold each term."""
        return lexical.document_frequency(self._rows, terms, self._cache.frequency(self.generation))

    def phrase(self, words: Sequence[str], limit: int, admitted: Numbers | None = None) -> list[int]:
        """Blocks in which these words follow one another, up to their endings, in document order."""
        return lexical.with_phrase(self._rows, words, limit, self._arrays.numbers, admitted)

    def named(self, names: Sequence[str], per_name: int = 64) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks that answer to each name (see `compmem.terms.name`), titles first; unknown names are left out."""
        return lexical.named(self._rows, names, per_name)

    def documents(self, filter: Filter | None = None) -> Iterator[DocumentInfo]:
        """The documents that a filter admits, in the order in which they were added.

        Raises:
            ValueError: An operator is unknown, or a value is of a type that it does not take.
        """
        return self._document_infos(admitted(compile_filter({} if filter is None else filter), self._rows))

    def document(self, document_id: str) -> Document | None:
        """A document with its text, or None.

        Raises:
            CorruptStoreError: Its text does not match its checksums.
        """
        numbers = self.document_blocks(document_id)
        if not numbers:
            return None
        chunks = self.chunks(numbers)
        return Document(
            id=document_id,
            title=chunks[0].title,
            metadata=chunks[0].metadata,
            text="".join(chunk.text for chunk in chunks),
        )

    def document_blocks(self, document_id: str) -> list[int]:
        """Numbers of a document's blocks in order; none for an unknown document."""
        if not storable(document_id):
            return []
        sql = "SELECT number FROM blocks WHERE document = (SELECT key FROM documents WHERE id = ?) ORDER BY ordinal"
        return [int(number) for (number,) in self._rows(sql, document_id)]

    @property
    def _arrays(self) -> Arrays:
        return self._cache.arrays(self._rows, self._state)

    def _document_infos(self, keys: Numbers) -> Iterator[DocumentInfo]:
        sql = (
            "SELECT d.id, d.title, d.metadata, sum(b.characters), count(*) FROM documents AS d "
            "JOIN blocks AS b ON b.document = d.key WHERE d.key IN (SELECT value FROM json_each(?)) GROUP BY d.key"
        )
        for at in range(0, len(keys), _BATCH):
            for name, title, metadata, characters, chunks in self._rows(sql, number_list(keys[at : at + _BATCH])):
                yield DocumentInfo(
                    id=name, title=title, metadata=parse_metadata(metadata, name), characters=characters, chunks=chunks
                )

    def _fetch(self, blocks: Sequence[int] | Numbers) -> dict[int, Placed]:
        asked = sorted({int(number) for number in blocks})
        found = {block.place.number: block for block in read_blocks(self._rows, asked)}
        if len(found) < len(asked):
            missing = next(number for number in asked if number not in found)
            raise ValueError(f"block {missing} is not in this snapshot")
        return found


_PLACE: Final = (
    "b.number, d.id, b.row, coalesce(b.sentence_row, 0), coalesce(b.sentence_rows, 0), coalesce(b.vector_crc, 0), "
    "b.kv, coalesce(k.bytes, 0), coalesce(b.kv_crc, 0)"
)
_BLOCKS: Final = (
    "FROM blocks AS b JOIN documents AS d ON d.key = b.document LEFT JOIN kv AS k ON k.serial = b.kv "
    "JOIN texts AS t ON t.number = b.number WHERE b.number IN (SELECT value FROM json_each(?)) ORDER BY b.number"
)
_CHUNK: Final = "b.ordinal, b.start, d.title, d.metadata, t.text, t.headings, t.spans, b.text_crc"


def read_places(rows: Rows, numbers: Sequence[int] | Numbers) -> list[Place]:
    """Where blocks lie, by rising number.

    Raises:
        CorruptStoreError: A row is not one.
    """
    out = []
    for at in range(0, len(numbers), _BATCH):
        part = number_list(numbers[at : at + _BATCH])
        out += [
            _place(row)
            for row in rows(f"SELECT {_PLACE} {_BLOCKS.replace('JOIN texts AS t ON t.number = b.number ', '')}", part)
        ]
    return out


def read_blocks(rows: Rows, numbers: Sequence[int] | Numbers) -> Iterator[Placed]:
    """Blocks by rising number, without vectors and KV states; unknown numbers are left out.

    Raises:
        CorruptStoreError: A text does not match its checksum.
    """
    parsed: dict[str, Mapping[str, Any]] = {}
    for at in range(0, len(numbers), _BATCH):
        part = number_list(numbers[at : at + _BATCH])
        for row in rows(f"SELECT {_PLACE}, {_CHUNK} {_BLOCKS}", part):
            place = _place(row[: len(Place._fields)])
            ordinal, start, title, metadata, text, headings, spans, crc = row[len(Place._fields) :]
            try:
                if not isinstance(title, str) or not isinstance(ordinal, int) or not isinstance(start, int):
                    raise ValueError(f"title {title!r}, ordinal {ordinal!r}, start {start!r}")
                if text_crc(text, headings, spans) != crc:
                    raise CorruptStoreError(f"the text of {place} does not match its checksum")
                if metadata not in parsed:
                    parsed[metadata] = parse_metadata(metadata, place.document)
                chunk = Chunk(
                    text=text,
                    document_id=place.document,
                    ordinal=ordinal,
                    start=start,
                    title=title,
                    headings=tuple(parse_headings(headings)),
                    sentences=unpack_spans(spans, len(text)),
                    metadata=parsed[metadata],
                )
            except (TypeError, ValueError, AttributeError) as error:
                raise CorruptStoreError(f"the row of {place} cannot be read: {error}") from error
            yield Placed(chunk, place)


def load_block(block: Placed, state: State, cache: Cache) -> MemoryBlock:
    """The whole block: vectors and KV states read and checked.

    Raises:
        CorruptStoreError: They do not match their checksums.
    """
    place = block.place
    vectors: Vectors | None = None
    if place.row is not None:
        raw = raw_rows(place, cache.chunk_rows(state), cache.sentence_rows(state))
        vectors = RowFormat(cache.kind, state.dim or 0).unpack(raw)
    kv = None if place.kv is None else cache.kv_states(place, place.kv)
    return MemoryBlock(chunk=block.chunk, vectors=vectors, kv=kv)


def raw_rows(place: Place, chunk_rows: Raw, sentence_rows: Raw) -> Raw:
    """A block's stored rows: the whole chunk's, then its sentences'.

    Raises:
        CorruptStoreError: They do not match their checksum.
    """
    row, first, last = place.row, place.sentence_row, place.sentence_row + place.sentence_rows
    if row is None or not 0 <= row < len(chunk_rows) or not 0 <= first <= last <= len(sentence_rows):
        raise CorruptStoreError(f"the vectors of {place} lie outside their file")
    raw = np.concatenate([chunk_rows[row : row + 1], sentence_rows[first:last]])
    if crc_of(raw) != place.vector_crc:
        raise CorruptStoreError(f"the vectors of {place} do not match their checksum")
    return raw


def kv_parts(place: Place, serial: int, segments: KVSegments, *, verify: bool = True) -> Parts:
    """A block's stored KV tensors.

    Raises:
        CorruptStoreError: They do not match their checksum.
    """
    parts = segments.read(serial, place.number, place.kv_bytes)
    if verify and checksum(parts) != place.kv_crc:
        raise CorruptStoreError(f"the KV states of {place} do not match their checksum")
    return parts


def parse_metadata(text: str, document_id: str) -> Mapping[str, Any]:
    """Metadata from its row.

    Raises:
        CorruptStoreError: It is not a JSON object.
    """
    try:
        found = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise CorruptStoreError(f"the metadata of document {document_id!r} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise CorruptStoreError(f"the metadata of document {document_id!r} is not an object")
    return found


def _place(row: Sequence[Any]) -> Place:
    place = Place(*row)
    for name, value in zip(Place._fields, place, strict=True):
        whole = isinstance(value, int) or (value is None and name in ("row", "kv"))
        if not (isinstance(value, str) if name == "document" else whole):
            raise CorruptStoreError(f"the row of {place} has {name}={value!r}")
    return place


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
    if table.size and int(table[2].max()) >= state.chunk_rows:
        raise CorruptStoreError("a block's vector lies outside its file")
    numbers, documents, placed = (np.ascontiguousarray(column) for column in table)
    for column in (numbers, documents, placed):
        column.setflags(write=False)
    return Arrays(state.generation, state.epoch, numbers, documents, placed)
