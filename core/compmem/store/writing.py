"""The steps of a write transaction: adding and deleting documents. Bytes are synced before the manifest names them."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, repeat
from typing import Final

import numpy as np

from compmem.config import KVType, VectorType
from compmem.errors import CorruptStoreError
from compmem.kv_format import KVTensors, checksum, pack
from compmem.schema import Chunk, Document, MemoryBlock, Vectors
from compmem.store import kv, lexical
from compmem.store.connection import Connection
from compmem.store.folder import Folder
from compmem.store.manifest import State, read_state, storable, write_state
from compmem.store.records import (
    ContentHash,
    check_block,
    check_document,
    headings_json,
    metadata_json,
    pack_spans,
    parse_headings,
    text_crc,
)
from compmem.store.vectors import RowFormat, crc_of, grow_segments

log = logging.getLogger(__name__)

Vector = tuple[int, int, int, int] | tuple[None, None, None, None]
"""Row, first sentence row, sentence rows, checksum."""

PIECE: Final = 200_000
"""Characters of blocks that are written together."""

_TEXTS: Final = (
    "SELECT b.number, d.title, t.headings, t.text FROM blocks AS b "
    "JOIN texts AS t ON t.number = b.number JOIN documents AS d ON d.key = b.document"
)


def insert(
    connection: Connection,
    folder: Folder,
    documents: Iterable[tuple[Document, Iterable[MemoryBlock]]],
    kinds: tuple[VectorType, KVType],
    numbers: Iterable[int] | None = None,
) -> None:
    """Write documents, replacing those with the same ids; only a part of their blocks is in memory at once.

    Args:
        connection: The write transaction.
        folder: The store's folder.
        documents: Documents, each with its blocks in order.
        kinds: How vectors and KV states are stored.
        numbers: Lowest number that each document's first block may get. None: the next free number.

    Raises:
        ValueError: A document cannot be stored, an id occurs twice, or vectors have another dimension than those of the
            index, or are missing.
        StoreError: The files cannot be written.
    """
    refresh_terms(connection)
    writer = _Writer(connection, folder, kinds)
    seen: set[str] = set()
    for (document, blocks), number in zip(documents, numbers or repeat(0), strict=False):
        check_document(document)
        if document.id in seen:
            raise ValueError(f"document {document.id!r} is given twice in one call")
        seen.add(document.id)
        writer.put(document, blocks, number)
    writer.flush()
    state = read_state(connection.rows)
    write_state(connection, replace(state, generation=state.generation + 1))


@dataclass(frozen=True, slots=True)
class _WaitingBlock:
    """A block that waits to be written."""

    number: int
    key: int
    ordinal: int
    start: int
    document: Document
    block: MemoryBlock
    vectors: Vectors | None


class _Writer:
    """Writes blocks in batches from several documents, or from a part of one."""

    def __init__(self, connection: Connection, folder: Folder, kinds: tuple[VectorType, KVType]) -> None:
        self._connection = connection
        self._folder = folder
        self._kinds = kinds
        self._waiting: list[_WaitingBlock] = []
        self._size = 0
        self._next = read_state(connection.rows).next_block

    def put(self, document: Document, blocks: Iterable[MemoryBlock], number: int) -> None:
        """Take a document with its blocks in order, numbered from this number or from the next free one."""
        self._next = max(self._next, number)
        remove(self._connection, [document.id])
        whole = ContentHash(document)
        cursor = self._connection.execute(
            "INSERT INTO documents(id, hash, title, metadata) VALUES (?, '', ?, ?)",
            (document.id, document.title, metadata_json(document)),
        )
        key = int(cursor.lastrowid or 0)
        start = 0
        for ordinal, block in enumerate(blocks):
            vectors = check_block(document, block, start)
            self._waiting.append(_WaitingBlock(self._next, key, ordinal, start, document, block, vectors))
            self._next += 1
            whole.add(block.chunk)
            start += len(block.chunk.text)
            self._size += len(block.chunk.text)
            if self._size >= PIECE:
                self.flush()
        if start != len(document.text):
            raise ValueError(f"document {document.id!r}: its chunks do not cover its text exactly")
        self._connection.execute("UPDATE documents SET hash = ? WHERE key = ?", (whole.value(), key))

    def flush(self) -> None:
        """Write the waiting blocks."""
        state = read_state(self._connection.rows)
        state, vectors = _put_vectors(self._connection, self._folder, self._waiting, self._kinds[0], state)
        state, states = _put_kv(self._connection, self._folder, self._waiting, self._kinds[1], state)
        for waiting, vector, kv_state in zip(self._waiting, vectors, states, strict=True):
            _put_block(self._connection, waiting, (*vector, *kv_state))
        write_state(self._connection, replace(state, next_block=self._next))
        self._waiting, self._size = [], 0


def remove(connection: Connection, ids: Sequence[str]) -> int:
    """Delete documents; returns how many existed."""
    rows = connection.rows
    removed = blocks = 0
    for name in dict.fromkeys(ids):
        found = rows("SELECT key FROM documents WHERE id = ?", name) if storable(name) else []
        if not found:
            continue
        key = found[0][0]
        for number, chunk in _block_texts(connection, "b.document = ?", key):
            lexical.forget_block(connection, number, chunk)
            connection.execute("DELETE FROM texts WHERE number = ?", (number,))
            blocks += 1
        connection.execute("DELETE FROM blocks WHERE document = ?", (key,))
        connection.execute("DELETE FROM documents WHERE key = ?", (key,))
        removed += 1
    if removed:
        state = read_state(rows)
        write_state(
            connection,
            replace(state, generation=state.generation + 1, epoch=state.epoch + 1, deleted=state.deleted + blocks),
        )
    return removed


def refresh_terms(connection: Connection) -> None:
    """Rebuild the lexical index if its terms were made differently: FTS5 needs the exact terms to delete a block."""
    if lexical.is_current(connection.rows):
        return
    log.warning("the lexical index was made by a version of compmem with other terms; rebuilding it")
    lexical.rebuild(connection, _block_texts(connection, "1 = 1"))
    connection.execute("UPDATE manifest SET value = ? WHERE name = 'terms'", (json.dumps(lexical.fingerprint()),))


def _block_texts(connection: Connection, where: str, *parameters: object) -> Iterator[tuple[int, Chunk]]:
    for number, title, headings, text in connection.execute(f"{_TEXTS} WHERE {where} ORDER BY b.number", parameters):
        above, context = parse_headings(headings)
        if not isinstance(title, str) or not isinstance(text, str):
            raise CorruptStoreError(f"the text of block {number} is not text")
        yield number, Chunk(title=title, headings=above, context=context, text=text)


def _put_vectors(
    connection: Connection, folder: Folder, blocks: Sequence[_WaitingBlock], kind: VectorType, state: State
) -> tuple[State, list[Vector]]:
    arrays = [waiting.vectors for waiting in blocks if waiting.vectors is not None]
    _check_dims(blocks, state)
    if not arrays:
        return state, [(None, None, None, None)] * len(blocks)
    layout = RowFormat(kind, arrays[0].shape[1])
    chunks = layout.pack(np.stack([array[0] for array in arrays]))
    sentences = layout.pack(np.concatenate([array[1:] for array in arrays]))
    folder.append(folder.chunks(state.vectors), state.chunk_rows * layout.width, chunks)
    folder.append(folder.sentences(state.vectors), state.sentence_rows * layout.width, sentences)
    if not state.chunk_rows:
        folder.sync()
    counts = [len(array) - 1 for array in arrays]
    starts = list(accumulate(counts, initial=0))
    positions: list[Vector] = [
        (
            state.chunk_rows + i,
            state.sentence_rows + starts[i],
            count,
            crc_of(sentences[starts[i] : starts[i] + count], crc_of(chunks[i : i + 1])),
        )
        for i, count in enumerate(counts)
    ]
    connection.executemany(
        "INSERT OR REPLACE INTO segments VALUES (?, ?, ?)", grow_segments(connection.rows, state.chunk_rows, chunks)
    )
    return (
        replace(
            state,
            dim=layout.dim,
            chunk_rows=state.chunk_rows + len(chunks),
            sentence_rows=state.sentence_rows + len(sentences),
        ),
        positions,
    )


def _check_dims(blocks: Sequence[_WaitingBlock], state: State) -> None:
    expected = state.dim
    bare = expected is None and state.next_block > 1
    for waiting in blocks:
        name = f"document {waiting.document.id!r}"
        if waiting.vectors is None:
            if expected is not None:
                raise ValueError(f"{name}: the index has vectors, but its blocks have none")
            bare = True
            continue
        if bare:
            raise ValueError(f"{name}: its blocks have vectors, but others in the index have none")
        expected = expected or waiting.vectors.shape[1]
        if waiting.vectors.shape[1] != expected:
            raise ValueError(f"{name}: vectors of {waiting.vectors.shape[1]} dimensions, but the index has {expected}")


def _put_kv(
    connection: Connection, folder: Folder, blocks: Sequence[_WaitingBlock], kind: KVType, state: State
) -> tuple[State, list[tuple[int | None, int | None]]]:
    packed: dict[int, KVTensors] = {}
    positions: list[tuple[int | None, int | None]] = []
    for waiting in blocks:
        if waiting.block.kv is None:
            positions.append((None, None))
            continue
        try:
            parts = pack(waiting.block.kv, kind)
        except ValueError as error:
            raise ValueError(f"document {waiting.document.id!r}: {error}") from error
        packed[waiting.number] = parts
        positions.append((state.next_file, checksum(parts)))
    if not packed:
        return state, positions
    size = kv.write_segment(folder, state.next_file, packed)
    folder.sync()
    connection.execute("INSERT INTO kv VALUES (?, ?, ?)", (state.next_file, size, len(packed)))
    return replace(state, next_file=state.next_file + 1), positions


def _put_block(connection: Connection, waiting: _WaitingBlock, stored: tuple[int | None, ...]) -> None:
    chunk, number = waiting.block.chunk, waiting.number
    headings, spans = headings_json(chunk), pack_spans(chunk.sentences)
    position = (waiting.key, waiting.ordinal, waiting.start)
    connection.execute(
        "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (number, *position, len(chunk.text), len(chunk.sentences), text_crc(chunk.text, headings, spans), *stored),
    )
    connection.execute("INSERT INTO texts VALUES (?, ?, ?, ?)", (number, chunk.text, headings, spans))
    lexical.index_block(connection, number, replace(chunk, title=waiting.document.title))
