"""Reads a block's rows from the manifest and its bytes from the files, and checks them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from compmem.errors import CorruptStoreError
from compmem.kv_format import KVTensors, checksum
from compmem.schema import Chunk
from compmem.store.kv import KVSegments
from compmem.store.manifest import Rows, parse_json
from compmem.store.records import parse_headings, text_crc, unpack_spans
from compmem.store.vectors import Raw, RowFormat, crc_of

Numbers = NDArray[np.int64]

BATCH: Final = 1000
"""Rows per query."""


class BlockLocation(NamedTuple):
    """Position of a block's vectors and KV states in the files, in the order of the columns in `_LOCATION`."""

    number: int
    document: str
    row: int | None
    sentence_row: int
    sentence_rows: int
    vector_crc: int
    kv: int | None
    kv_bytes: int
    kv_crc: int
    sentences: int

    def __str__(self) -> str:
        return f"block {self.number} of document {self.document!r}"


@dataclass(frozen=True, slots=True)
class LocatedBlock:
    """A block's chunk, and the position of its data."""

    chunk: Chunk
    location: BlockLocation


_LOCATION: Final = (
    "b.number, d.id, b.row, coalesce(b.sentence_row, 0), coalesce(b.sentence_rows, 0), coalesce(b.vector_crc, 0), "
    "b.kv, coalesce(k.bytes, 0), coalesce(b.kv_crc, 0), length(t.spans) / 8"
)
_CHUNK: Final = "b.document, b.ordinal, b.start, t.text, t.headings, t.spans, b.text_crc"
_OF_DOCUMENTS: Final = "SELECT key, title, metadata FROM documents WHERE key IN (SELECT value FROM json_each(?))"
_FROM: Final = (
    "FROM blocks AS b JOIN documents AS d ON d.key = b.document LEFT JOIN kv AS k ON k.serial = b.kv "
    "JOIN texts AS t ON t.number = b.number"
)
_BY_NUMBER: Final = "WHERE b.number IN (SELECT value FROM json_each(?)) ORDER BY b.number"


def number_list(numbers: Sequence[int] | Numbers) -> str:
    """Block numbers as one SQL parameter, for `json_each`."""
    return json.dumps([int(n) for n in numbers])


def read_locations(rows: Rows, numbers: Sequence[int] | Numbers) -> list[BlockLocation]:
    """The positions of blocks, by ascending number.

    Raises:
        CorruptStoreError: A row is invalid.
    """
    sql = f"SELECT {_LOCATION} {_FROM} {_BY_NUMBER}"
    parts = (number_list(numbers[at : at + BATCH]) for at in range(0, len(numbers), BATCH))
    return [_location(row) for part in parts for row in rows(sql, part)]


def read_blocks(rows: Rows, numbers: Sequence[int] | Numbers) -> Iterator[LocatedBlock]:
    """Blocks by ascending number, without vectors and KV states; unknown numbers are left out.

    Raises:
        CorruptStoreError: A text does not match its checksum.
    """
    about: dict[int, tuple[Any, Any]] = {}
    parsed: dict[int, Mapping[str, Any]] = {}
    for at in range(0, len(numbers), BATCH):
        part = number_list(numbers[at : at + BATCH])
        found = rows(f"SELECT {_LOCATION}, {_CHUNK} {_FROM} {_BY_NUMBER}", part)
        new = {row[len(BlockLocation._fields)] for row in found} - about.keys()
        about |= {key: named for key, *named in rows(_OF_DOCUMENTS, number_list(sorted(new)))}
        for row in found:
            location = _location(row[: len(BlockLocation._fields)])
            key, ordinal, start, text, headings, spans, crc = row[len(BlockLocation._fields) :]
            title, metadata = about[key]
            try:
                if not isinstance(title, str) or not isinstance(ordinal, int) or not isinstance(start, int):
                    raise ValueError(f"title {title!r}, ordinal {ordinal!r}, start {start!r}")
                if text_crc(text, headings, spans) != crc:
                    raise CorruptStoreError(f"the text of {location} does not match its checksum")
                if key not in parsed:
                    parsed[key] = parse_metadata(metadata, location.document)
                above, context = parse_headings(headings)
                chunk = Chunk(
                    text=text,
                    document_id=location.document,
                    ordinal=ordinal,
                    start=start,
                    title=title,
                    headings=above,
                    context=context,
                    sentences=unpack_spans(spans, len(text)),
                    metadata=parsed[key],
                )
            except (TypeError, ValueError, AttributeError) as error:
                raise CorruptStoreError(f"the row of {location} cannot be read: {error}") from error
            yield LocatedBlock(chunk, location)


def raw_rows(location: BlockLocation, chunk_rows: Raw, sentence_rows: Raw, layout: RowFormat) -> Raw:
    """A block's stored rows: the whole chunk's, then its sentences'.

    Raises:
        CorruptStoreError: They do not match their checksum or the sentences of the block, or are no unit vectors.
    """
    row, first, last = location.row, location.sentence_row, location.sentence_row + location.sentence_rows
    if location.sentence_rows not in ({location.sentences} if location.sentences else {0, 1}):
        raise CorruptStoreError(
            f"{location} has {location.sentences} sentences and {location.sentence_rows} vectors of them"
        )
    if row is None or not 0 <= row < len(chunk_rows) or not 0 <= first <= last <= len(sentence_rows):
        raise CorruptStoreError(f"the vectors of {location} are outside their file")
    raw = np.concatenate([chunk_rows[row : row + 1], sentence_rows[first:last]])
    if crc_of(raw) != location.vector_crc:
        raise CorruptStoreError(f"the vectors of {location} do not match their checksum")
    layout.check(raw, f"the vectors of {location}")
    return raw


def read_kv_tensors(location: BlockLocation, segments: KVSegments, *, verify: bool = True) -> KVTensors:
    """A block's stored KV tensors.

    Raises:
        CorruptStoreError: They do not match their checksum.
    """
    assert location.kv is not None, "the block has KV states"
    tensors = segments.read(location.kv, location.number, location.kv_bytes)
    if verify and checksum(tensors) != location.kv_crc:
        raise CorruptStoreError(f"the KV states of {location} do not match their checksum")
    return tensors


def parse_metadata(text: str, document_id: str) -> Mapping[str, Any]:
    """Metadata from its row.

    Raises:
        CorruptStoreError: It is not a JSON object.
    """
    found = parse_json(text, f"the metadata of document {document_id!r}")
    if not isinstance(found, dict):
        raise CorruptStoreError(f"the metadata of document {document_id!r} is not an object")
    return found


def _location(row: Sequence[Any]) -> BlockLocation:
    location = BlockLocation(*row)
    for name, value in zip(BlockLocation._fields, location, strict=True):
        whole = isinstance(value, int) or (value is None and name in ("row", "kv"))
        if not (isinstance(value, str) if name == "document" else whole):
            raise CorruptStoreError(f"the row of {location} has {name}={value!r}")
    return location
