"""What a write transaction does: documents in, documents out. Bytes are synced before the transaction names them."""

import json
import logging
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final

import numpy as np

from compmem.config import KVType, VectorType
from compmem.schema import Chunk, MemoryBlock
from compmem.store import kv, lexical
from compmem.store.folder import Folder
from compmem.store.manifest import State, read_state, rows_of, storable, write_state
from compmem.store.records import Record, headings_json, pack_spans, parse_headings, text_crc
from compmem.store.vectors import RowFormat, crc_of, grow_segments

log = logging.getLogger(__name__)

Vector = tuple[int, int, int, int] | tuple[None, None, None, None]
"""Row, first sentence row, sentence rows, checksum."""

_TEXTS: Final = (
    "SELECT b.number, d.title, t.headings, t.text FROM blocks AS b "
    "JOIN texts AS t ON t.number = b.number JOIN documents AS d ON d.key = b.document"
)


def insert(
    connection: sqlite3.Connection, folder: Folder, records: Sequence[Record], kinds: tuple[VectorType, KVType]
) -> None:
    """Write documents, in place of those that have their ids.

    Raises:
        ValueError: Vectors are of another dimension than the index's, or missing where it has them.
        StoreError: The files cannot be written.
    """
    refresh_terms(connection)
    remove(connection, [record.id for record in records])
    state = read_state(rows_of(connection))
    first = state.next_block
    state, vectors = _put_vectors(connection, folder, records, kinds[0], state)
    state, states = _put_kv(connection, folder, records, kinds[1], state)
    number = first
    for record in records:
        cursor = connection.execute(
            "INSERT INTO documents(id, hash, title, metadata) VALUES (?, ?, ?, ?)",
            (record.id, record.hash, record.title, record.metadata),
        )
        key = cursor.lastrowid
        start = 0
        for ordinal, block in enumerate(record.blocks):
            placed = (*vectors[number - first], *states[number - first])
            _put_block(connection, number, (key, ordinal, start), record.title, block, placed)
            start += len(block.chunk.text)
            number += 1
    write_state(connection, replace(state, next_block=number, generation=state.generation + 1))


def remove(connection: sqlite3.Connection, ids: Sequence[str]) -> int:
    """Delete documents; the number that were there."""
    rows = rows_of(connection)
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


def refresh_terms(connection: sqlite3.Connection) -> None:
    """Make the lexical index anew if its terms were cut differently: FTS5 can delete only what it is told exactly."""
    rows = rows_of(connection)
    now = lexical.fingerprint()
    if rows("SELECT json_extract(value, '$') FROM manifest WHERE name = 'terms'") == [(now,)]:
        return
    log.warning("the lexical index was made by a version of compmem that cuts terms differently; it is made anew")
    lexical.rebuild(connection, _block_texts(connection, "1 = 1"))
    connection.execute("UPDATE manifest SET value = ? WHERE name = 'terms'", (json.dumps(now),))


def _block_texts(connection: sqlite3.Connection, where: str, *parameters: object) -> Iterator[tuple[int, Chunk]]:
    for number, title, headings, text in connection.execute(f"{_TEXTS} WHERE {where} ORDER BY b.number", parameters):
        above, context = parse_headings(headings)
        yield number, Chunk(title=title, headings=above, context=context, text=text)


def _put_vectors(
    connection: sqlite3.Connection, folder: Folder, records: Sequence[Record], kind: VectorType, state: State
) -> tuple[State, list[Vector]]:
    arrays = [array for record in records for array in record.vectors or ()]
    blocks = sum(len(record.blocks) for record in records)
    _check_dims(records, state)
    if not arrays:
        return state, [(None, None, None, None)] * blocks
    layout = RowFormat(kind, arrays[0].shape[1])
    chunks = layout.pack(np.stack([array[0] for array in arrays]))
    sentences = layout.pack(np.concatenate([array[1:] for array in arrays]))
    folder.append(folder.chunks(state.vectors), state.chunk_rows * layout.width, chunks)
    folder.append(folder.sentences(state.vectors), state.sentence_rows * layout.width, sentences)
    if not state.chunk_rows:
        folder.sync()
    counts = [len(array) - 1 for array in arrays]
    starts = list(accumulate(counts, initial=0))
    placed: list[Vector] = [
        (
            state.chunk_rows + i,
            state.sentence_rows + starts[i],
            count,
            crc_of(sentences[starts[i] : starts[i] + count], crc_of(chunks[i : i + 1])),
        )
        for i, count in enumerate(counts)
    ]
    connection.executemany(
        "INSERT OR REPLACE INTO segments VALUES (?, ?, ?)", grow_segments(rows_of(connection), state.chunk_rows, chunks)
    )
    return (
        replace(
            state,
            dim=layout.dim,
            chunk_rows=state.chunk_rows + len(chunks),
            sentence_rows=state.sentence_rows + len(sentences),
        ),
        placed,
    )


def _check_dims(records: Sequence[Record], state: State) -> None:
    expected = state.dim
    bare = expected is None and state.next_block > 1
    for record in records:
        if record.vectors is None:
            if expected is not None:
                raise ValueError(f"document {record.id!r}: the index holds vectors, its blocks have none")
            bare = True
            continue
        if bare:
            raise ValueError(f"document {record.id!r}: its blocks have vectors, others in the index have none")
        for array in record.vectors:
            expected = expected or array.shape[1]
            if array.shape[1] != expected:
                raise ValueError(
                    f"document {record.id!r}: vectors of {array.shape[1]} dimensions, the index holds {expected}"
                )


def _put_kv(
    connection: sqlite3.Connection, folder: Folder, records: Sequence[Record], kind: KVType, state: State
) -> tuple[State, list[tuple[int | None, int | None]]]:
    packed: dict[int, kv.Parts] = {}
    placed: list[tuple[int | None, int | None]] = []
    for record in records:
        for block in record.blocks:
            if block.kv is None:
                placed.append((None, None))
                continue
            try:
                parts = kv.pack(block.kv, kind)
            except ValueError as error:
                raise ValueError(f"document {record.id!r}: {error}") from error
            packed[state.next_block + len(placed)] = parts
            placed.append((state.next_file, kv.checksum(parts)))
    if not packed:
        return state, placed
    size = kv.write_segment(folder, state.next_file, packed)
    folder.sync()
    connection.execute("INSERT INTO kv VALUES (?, ?, ?)", (state.next_file, size, len(packed)))
    return replace(state, next_file=state.next_file + 1), placed


def _put_block(
    connection: sqlite3.Connection,
    number: int,
    place: tuple[int | None, int, int],
    title: str,
    block: MemoryBlock,
    stored: tuple[int | None, ...],
) -> None:
    chunk = block.chunk
    headings, spans = headings_json(chunk), pack_spans(chunk.sentences)
    connection.execute(
        "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (number, *place, len(chunk.text), len(chunk.sentences), text_crc(chunk.text, headings, spans), *stored),
    )
    connection.execute("INSERT INTO texts VALUES (?, ?, ?, ?)", (number, chunk.text, headings, spans))
    lexical.index_block(connection, number, replace(chunk, title=title))
