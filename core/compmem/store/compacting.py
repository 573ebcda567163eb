"""Compaction: copies live blocks into new files, and removes the old ones from the manifest in the same transaction."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import numpy as np

from compmem.kv_format import KVTensors
from compmem.store import kv
from compmem.store.blocks import BlockLocation, raw_rows, read_kv_tensors, read_locations
from compmem.store.cache import Cache
from compmem.store.connection import Connection
from compmem.store.folder import Folder
from compmem.store.manifest import State, read_state, write_state
from compmem.store.vectors import grow_segments
from compmem.store.writing import refresh_terms

_SLICE: Final = 4096
_SEGMENT_BYTES: Final = 1 << 28
"""Size at which a new KV segment is closed; segments of at least half of it without dead blocks are not rewritten."""


def compact(connection: Connection, folder: Folder, cache: Cache) -> None:
    """Rewrite the files that contain deleted data, as part of a write transaction.

    Raises:
        CorruptStoreError: A block does not match its checksum; nothing is copied, so `verify` still finds it.
        StoreError: The new files cannot be written.
    """
    refresh_terms(connection)
    rows = connection.rows
    state = read_state(rows)
    numbers = [number for (number,) in rows("SELECT number FROM blocks ORDER BY number")]
    locations = read_locations(rows, numbers)
    state = _rewrite_vectors(
        connection, folder, cache, state, [location for location in locations if location.row is not None]
    )
    state = _rewrite_kv(
        connection, folder, cache, state, [location for location in locations if location.kv is not None]
    )
    connection.execute("INSERT INTO lexical(lexical) VALUES ('optimize')")
    write_state(
        connection,
        replace(state, generation=state.generation + 1, epoch=state.epoch + 1, deleted=0, garbage=True),
    )


def _rewrite_vectors(
    connection: Connection, folder: Folder, cache: Cache, old: State, locations: list[BlockLocation]
) -> State:
    if old.dim is None:
        return old
    layout = cache.layout(old)
    new = replace(old, vectors=old.next_file, next_file=old.next_file + 1, chunk_rows=0, sentence_rows=0)
    connection.execute("DELETE FROM segments")
    for at in range(0, max(len(locations), 1), _SLICE):
        part = locations[at : at + _SLICE]
        raws = [raw_rows(location, cache.chunk_rows(old), cache.sentence_rows(old), layout) for location in part]
        empty = np.empty((0, layout.width), np.uint8)
        chunks = np.concatenate([empty, *(raw[:1] for raw in raws)])
        sentences = np.concatenate([empty, *(raw[1:] for raw in raws)])
        folder.append(folder.chunks(new.vectors), new.chunk_rows * layout.width, chunks)
        folder.append(folder.sentences(new.vectors), new.sentence_rows * layout.width, sentences)
        moved = []
        sentence_row = new.sentence_rows
        for i, location in enumerate(part):
            moved.append((new.chunk_rows + i, sentence_row, location.number))
            sentence_row += location.sentence_rows
        connection.executemany("UPDATE blocks SET row = ?, sentence_row = ? WHERE number = ?", moved)
        connection.executemany(
            "INSERT OR REPLACE INTO segments VALUES (?, ?, ?)",
            grow_segments(connection.rows, new.chunk_rows, chunks),
        )
        new = replace(new, chunk_rows=new.chunk_rows + len(chunks), sentence_rows=sentence_row)
    folder.sync()
    return new


def _rewrite_kv(
    connection: Connection, folder: Folder, cache: Cache, state: State, locations: list[BlockLocation]
) -> State:
    live: dict[int, int] = {}
    for location in locations:
        if location.kv is not None:
            live[location.kv] = live.get(location.kv, 0) + 1
    segments = connection.rows("SELECT serial, bytes, blocks FROM kv")
    moving = {serial for serial, size, blocks in segments if live.get(serial) != blocks or size < _SEGMENT_BYTES // 2}
    for part in _by_size([location for location in locations if location.kv in moving], cache):
        size = kv.write_segment(folder, state.next_file, part)
        connection.execute("INSERT INTO kv VALUES (?, ?, ?)", (state.next_file, size, len(part)))
        connection.executemany("UPDATE blocks SET kv = ? WHERE number = ?", [(state.next_file, n) for n in part])
        state = replace(state, next_file=state.next_file + 1)
    connection.executemany("DELETE FROM kv WHERE serial = ?", [(serial,) for serial in moving])
    folder.sync()
    return state


def _by_size(locations: list[BlockLocation], cache: Cache) -> Iterator[dict[int, KVTensors]]:
    part: dict[int, KVTensors] = {}
    size = 0
    for location in locations:
        assert location.kv is not None
        part[location.number] = read_kv_tensors(location, cache.kv)
        size += sum(tensor.nbytes for tensor in part[location.number].values())
        if size >= _SEGMENT_BYTES:
            yield part
            part, size = {}, 0
    if part:
        yield part
