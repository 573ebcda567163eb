"""Dense vectors on disk: rows of fixed width in two append-only files, memory-mapped and checked by checksum."""

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compmem.config import VectorType
from compmem.errors import CorruptStoreError
from compmem.schema import Vectors
from compmem.store.folder import Folder
from compmem.store.manifest import Rows

Raw = NDArray[np.uint8]
"""Rows in the file format, `[rows, width]`."""

_MAX_COMPONENT: Final = 1.01
"""Largest component of a unit vector, with rounding."""

SEGMENT_ROWS: Final = 8192
"""Maximum number of rows of the whole-chunk file per checksum."""


@dataclass(frozen=True, slots=True)
class RowFormat:
    """File format of one vector: half floats, or a float32 scale and one byte per dimension."""

    kind: VectorType
    dim: int

    @property
    def width(self) -> int:
        """Bytes per row."""
        return 2 * self.dim if self.kind == "fp16" else 4 + self.dim

    def pack(self, vectors: Vectors) -> Raw:
        """Rows for vectors `[rows, dim]`. For int8, the scale restores length 1 when the row is read."""
        out = np.empty((len(vectors), self.width), np.uint8)
        if self.kind == "fp16":
            out[:] = np.ascontiguousarray(vectors, "<f2").view(np.uint8)
            return out
        peak = np.abs(vectors).max(axis=1, keepdims=True, initial=0)
        whole = np.rint(vectors * np.divide(127, peak, out=np.zeros_like(peak), where=peak > 0))
        length = np.linalg.norm(whole, axis=1, keepdims=True)
        scale = np.divide(1, length, out=np.zeros_like(length), where=length > 0)
        out[:, :4] = scale.astype("<f4").view(np.uint8)
        out[:, 4:] = whole.astype(np.int8).view(np.uint8)
        return out

    def parts(self, raw: Raw) -> tuple[NDArray[np.int8] | NDArray[np.float16], NDArray[np.float32] | None]:
        """Stored values `[rows, dim]` and their scales `[rows]`, without a copy if possible."""
        if self.kind == "fp16":
            return raw.view("<f2"), None
        return raw[:, 4:].view(np.int8), np.ascontiguousarray(raw[:, :4]).view("<f4")[:, 0]

    def check(self, raw: Raw, what: str) -> None:
        """Refuse rows with a value that no unit vector has: none is above 1, or NaN.

        Raises:
            CorruptStoreError: There is one; the message begins with `what`.
        """
        values, scales = self.parts(raw)
        largest = values if scales is None else 127 * scales  # one of a row's values is 127 or -127, or all are 0
        if not np.all(np.abs(largest) <= _MAX_COMPONENT):
            raise CorruptStoreError(f"{what} are no unit vectors")

    def unpack(self, raw: Raw) -> Vectors:
        """Vectors `[rows, dim]` of rows."""
        values, scales = self.parts(raw)
        out = values.astype(np.float32)
        if scales is not None:
            out *= scales[:, None]
        return out


def map_rows(folder: Folder, file: Path, rows: int, width: int) -> Raw:
    """The committed rows of a file, memory-mapped; empty if there are none.

    Raises:
        CorruptStoreError: The file is shorter than the committed rows, or not a plain file.
    """
    if not rows:
        return np.empty((0, width), np.uint8)
    with folder.open(file, rows * width) as stream:
        return np.memmap(stream, np.uint8, "r", shape=(rows, width)).view(np.ndarray)


def crc_of(raw: Raw, crc: int = 0) -> int:
    """Checksum of rows, continued from that of the previous rows."""
    return zlib.crc32(raw.data, crc)


def grow_segments(rows: Rows, start: int, added: Raw) -> list[tuple[int, int, int]]:
    """Segments `(start, rows, checksum)` after rows were added: the last one is filled before a new one begins."""
    last = rows("SELECT start, rows, crc FROM segments ORDER BY start DESC LIMIT 1")
    _check_segments(last)
    out: list[tuple[int, int, int]] = []
    if last and last[0][1] < SEGMENT_ROWS and len(added):
        first, held, crc = last[0]
        taken = added[: SEGMENT_ROWS - held]
        out.append((first, held + len(taken), crc_of(taken, crc)))
        start, added = start + len(taken), added[len(taken) :]
    for at in range(0, len(added), SEGMENT_ROWS):
        part = added[at : at + SEGMENT_ROWS]
        out.append((start + at, len(part), crc_of(part)))
    return out


class ChunkVectors:
    """The whole-chunk vectors of every live block, for an exact scan.

    Values are read from the mapped file on access. A segment's checksum is verified when one of its rows is first
    read.

    Attributes:
        numbers: The blocks' numbers, ascending, `[n]`. Position `i` below is block `numbers[i]`.
        dim: Dimensions.
        kind: How they are stored.
    """

    def __init__(
        self,
        numbers: NDArray[np.int64],
        rows: NDArray[np.int64],
        raw: Raw,
        layout: RowFormat,
        segments: Sequence[tuple[int, int, int]],
        verified: set[tuple[int, int, int, int]],
        serial: int,
    ) -> None:
        self.numbers = numbers
        self.dim = layout.dim
        self.kind = layout.kind
        self._rows = rows
        self._raw = raw
        self._layout = layout
        self._segments = segments
        self._verified = verified
        self._serial = serial
        self._whole = bool(len(rows)) and int(rows[-1] - rows[0]) == len(rows) - 1 and bool(np.all(np.diff(rows) == 1))

    def __len__(self) -> int:
        return len(self.numbers)

    def only(self, blocks: NDArray[np.int64]) -> "ChunkVectors":
        """The vectors of these blocks, ascending by number; blocks without a vector are left out."""
        kept = np.isin(self.numbers, blocks, assume_unique=True)
        if kept.all():
            return self
        shared = (self._raw, self._layout, self._segments, self._verified, self._serial)
        return ChunkVectors(self.numbers[kept], self._rows[kept], *shared)

    def renumbered(self, numbers: NDArray[np.int64]) -> "ChunkVectors":
        """The same vectors with other block numbers, which are ascending too, `[n]`."""
        return ChunkVectors(numbers, self._rows, self._raw, self._layout, self._segments, self._verified, self._serial)

    def stored(
        self, start: int = 0, stop: int | None = None
    ) -> tuple[NDArray[np.int8] | NDArray[np.float16], NDArray[np.float32] | None]:
        """Stored values `[stop - start, dim]`, and for int8 their scales `[stop - start]`.

        Raises:
            CorruptStoreError: A checksum does not match.
        """
        return self._layout.parts(self._take(start, stop))

    def floats(self, start: int = 0, stop: int | None = None) -> Vectors:
        """Vectors `[stop - start, dim]`.

        Raises:
            CorruptStoreError: A checksum does not match.
        """
        return self._layout.unpack(self._take(start, stop))

    def of(self, blocks: Sequence[int] | NDArray[np.int64]) -> Vectors:
        """Vectors `[blocks, dim]` of blocks by number, in the order given.

        Raises:
            ValueError: A block has no vector here.
            CorruptStoreError: A checksum does not match.
        """
        asked = np.asarray(blocks, np.int64)
        at = np.searchsorted(self.numbers, asked)
        if len(asked) and (not len(self) or np.any(self.numbers[np.minimum(at, len(self) - 1)] != asked)):
            raise ValueError("a block has no vector in this snapshot")
        rows = self._rows[at]
        if len(rows):
            self._verify(int(rows.min()), int(rows.max()))
        return self._layout.unpack(self._raw[rows])

    def _take(self, start: int, stop: int | None) -> Raw:
        rows = self._rows[start:stop]
        if not len(rows):
            return self._raw[:0]
        first, last = (int(rows[0]), int(rows[-1])) if self._whole else (int(rows.min()), int(rows.max()))
        self._verify(first, last)
        return self._raw[first : last + 1] if self._whole else self._raw[rows]

    def _verify(self, first: int, last: int) -> None:
        begin, end = (bisect_right(self._segments, row, key=itemgetter(0)) for row in (first, last))
        for segment in self._segments[max(begin - 1, 0) : end]:
            key = (self._serial, *segment)
            if key not in self._verified:
                check_segment(self._raw, segment, self._layout)
                self._verified.add(key)


def check_segment(raw: Raw, segment: tuple[int, int, int], layout: RowFormat) -> None:
    """Compare the whole-chunk rows of a segment with its checksum.

    Raises:
        CorruptStoreError: They differ, or are no unit vectors.
    """
    start, rows, crc = segment
    if crc_of(raw[start : start + rows]) != crc:
        raise CorruptStoreError(
            f"whole-chunk vectors {start} to {start + rows} do not match their checksum; `verify` lists the blocks"
        )
    layout.check(raw[start : start + rows], f"whole-chunk vectors {start} to {start + rows}")


def segments_of(rows: Rows, committed: int) -> list[tuple[int, int, int]]:
    """The segments of the whole-chunk file, which must cover its committed rows; each is read at once.

    Raises:
        CorruptStoreError: They do not.
    """
    found = rows("SELECT start, rows, crc FROM segments ORDER BY start")
    _check_segments(found)
    edge = 0
    for start, count, _ in found:
        if start != edge:
            raise CorruptStoreError(f"the segments of the whole-chunk vectors have a gap at row {edge}")
        if not 0 < count <= SEGMENT_ROWS:
            raise CorruptStoreError(
                f"a segment of the whole-chunk vectors has {count} rows, not from 1 to {SEGMENT_ROWS}"
            )
        edge += count
    if edge != committed:
        raise CorruptStoreError(f"the segments of the whole-chunk vectors end at {edge}, but {committed} are committed")
    return [(start, count, crc) for start, count, crc in found]


def _check_segments(found: Sequence[tuple[Any, ...]]) -> None:
    if not all(isinstance(value, int) for segment in found for value in segment):
        raise CorruptStoreError("the segments of the whole-chunk vectors are not numbers")
