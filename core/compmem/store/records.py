"""Checks documents before they are stored, and converts them to the format of rows."""

import hashlib
import json
import re
import tempfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Final

import numpy as np

from compmem.errors import CorruptStoreError
from compmem.metadata import to_json_value
from compmem.schema import MAX_CONTEXT_CHARS, MAX_TITLE_CHARS, Chunk, Document, MemoryBlock, Vectors
from compmem.store.manifest import parse_json
from compmem.text.unicode import check

_UNIT: Final = 1e-2
"""Tolerance for the length of a unit vector."""
_IN_MEMORY: Final = 1 << 20
"""Bytes for a document's hash that are buffered in memory."""
_TEXT = re.compile(r"\S")

MAX_METADATA_CHARS: Final = 1 << 18
"""Maximum number of characters of a document's metadata as JSON, which come with every chunk that is recalled."""


class ContentHash:
    """A hash of everything that the store keeps of a document: texts, metadata, chunk borders.

    Chunks are added in order. All texts are hashed first; the rest is buffered in a file.

    Raises:
        ValueError: The metadata is not JSON.
    """

    def __init__(self, document: Document) -> None:
        self._digest = hashlib.sha256(_framed(document.title) + _framed(metadata_json(document)))
        self._texts = 2
        self._beside: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed by value

    def add(self, chunk: Chunk) -> None:
        """Add the next chunk."""
        self._digest.update(_framed(chunk.text))
        self._texts += 1
        self._beside.write(_framed(*chunk.headings) + _count(len(chunk.headings)))
        if chunk.context:
            self._beside.write(_framed(chunk.context) + _count(1))
        self._beside.write(pack_spans(chunk.sentences))

    def value(self) -> str:
        """The hash of the document with all its chunks."""
        self._digest.update(_count(self._texts))
        with self._beside as beside:
            beside.seek(0)
            while piece := beside.read(_IN_MEMORY):
                self._digest.update(piece)
        return self._digest.hexdigest()[:32]


def content_hash(document: Document, chunks: Iterable[Chunk]) -> str:
    """The `ContentHash` of a document with these chunks.

    Raises:
        ValueError: The metadata is not JSON.
    """
    whole = ContentHash(document)
    for chunk in chunks:
        whole.add(chunk)
    return whole.value()


def check_document(document: Document) -> None:
    """Refuse a document that cannot be stored; metadata and chunks are checked when they are.

    Raises:
        ValueError: It has no text, a field cannot be stored or is too long, or a chunk has a title or metadata of its
            own, which are kept once for the document; the message names the document.
    """
    name = f"document {document.id!r}"
    if not isinstance(document.id, str) or "\0" in document.id:
        raise ValueError(f"{name}: its id must be a string without NUL characters")
    for what, text, most in (
        ("id", document.id, MAX_TITLE_CHARS),
        ("title", document.title, MAX_TITLE_CHARS),
        ("context", document.context, MAX_CONTEXT_CHARS),
        ("text", document.text, None),
    ):
        check(f"{name}: its {what}", text)
        _check_length(f"{name}: its {what}", text, most)
    if not _TEXT.search(document.text):
        raise ValueError(f"{name} has no text")
    for ordinal, chunk in enumerate(document.chunks or ()):
        if not isinstance(chunk, Chunk):
            continue
        _check_length(f"{name}: the context of chunk {ordinal}", chunk.context, MAX_CONTEXT_CHARS)
        _check_length(f"{name}: the headings of chunk {ordinal}", "".join(chunk.headings), MAX_CONTEXT_CHARS)
        if chunk.title not in ("", document.title) or not chunk.metadata.items() <= document.metadata.items():
            raise ValueError(
                f"{name}: chunk {ordinal} has a title or metadata that the document has not: give them to the "
                "document, or make each chunk a document"
            )


def _check_length(what: str, text: str, most: int | None) -> None:
    if most is not None and len(text) > most:
        raise ValueError(f"{what} has {len(text):,} characters, but at most {most:,} can be kept")


def check_block(document: Document, block: MemoryBlock, start: int) -> Vectors | None:
    """The vectors of a document's block whose text must begin at `start`: `[1 + sentences, dim]`.

    Raises:
        ValueError: A field cannot be stored, or the text differs; the message names the document.
    """
    name = f"document {document.id!r}"
    if not document.text.startswith(block.chunk.text, start):
        raise ValueError(f"{name}: its chunks do not cover its text exactly")
    _check_chunk(name, block.chunk)
    return None if block.vectors is None else _vectors_of(name, block.vectors, len(block.chunk.sentences))


def pack_spans(spans: Sequence[tuple[int, int]]) -> bytes:
    """Sentence spans as bytes."""
    return np.asarray(spans, "<u4").reshape(-1, 2).tobytes()


def unpack_spans(data: bytes, length: int) -> tuple[tuple[int, int], ...]:
    """Sentence spans from bytes, for a text of that length."""
    if len(data) % 8:
        raise CorruptStoreError("sentence spans of a block have an impossible length")
    flat = np.frombuffer(data, "<u4").tolist()
    if flat != sorted(flat) or (flat and flat[-1] > length):
        raise CorruptStoreError("sentence spans of a block are outside its text")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def text_crc(text: str, headings: str, spans: bytes) -> int:
    """Checksum of a block's row in `texts`."""
    return zlib.crc32(spans, zlib.crc32(headings.encode(), zlib.crc32(text.encode())))


def headings_json(chunk: Chunk) -> str:
    """A chunk's headings for a row: a list, or an object with the context if it has one."""
    headings = list(chunk.headings)
    return json.dumps(
        {"headings": headings, "context": chunk.context} if chunk.context else headings, ensure_ascii=False
    )


def parse_headings(text: str) -> tuple[tuple[str, ...], str]:
    """Headings and context from their row.

    Raises:
        CorruptStoreError: The row has another format.
    """
    found = parse_json(text, "the headings of a block")
    if isinstance(found, dict) and found.keys() == {"headings", "context"}:
        found, context = found["headings"], found["context"]
    else:
        context = ""
    if not isinstance(found, list) or not all(isinstance(part, str) for part in (*found, context)):
        raise CorruptStoreError("the headings of a block are not a list of strings")
    return tuple(found), context


def _framed(*texts: str) -> bytes:
    """Texts as bytes, each with its length in front."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return b"".join(part for data in encoded for part in (_count(len(data)), data))


def _count(number: int) -> bytes:
    return number.to_bytes(8, "little")


def _check_chunk(name: str, chunk: Chunk) -> None:
    for heading in chunk.headings:
        check(f"{name}: its headings", heading)
    check(f"{name}: its context", chunk.context)
    edge = 0
    for start, end in chunk.sentences:
        if not edge <= start <= end <= len(chunk.text):
            raise ValueError(f"{name}: sentence span {(start, end)} overlaps another or leaves its chunk")
        edge = end


def _vectors_of(name: str, vectors: Vectors, sentences: int) -> Vectors:
    array = np.asarray(vectors, np.float32)
    if array.ndim != 2 or len(array) not in ({1 + sentences} if sentences else {1, 2}):
        raise ValueError(f"{name}: vectors of shape {array.shape} for a chunk of {sentences} sentences")
    lengths = np.linalg.norm(array, axis=1)
    if not np.all((np.abs(lengths - 1) < _UNIT) | (lengths == 0)):
        raise ValueError(f"{name}: its vectors must be finite and of length 1, but one has length {lengths.max():.4g}")
    return array


def metadata_json(document: Document) -> str:
    """The document's metadata for a row.

    Raises:
        ValueError: It is not JSON.
    """
    if not isinstance(document.metadata, Mapping):
        raise ValueError(f"document {document.id!r}: its metadata must be a mapping, not {document.metadata!r}")
    kept = {}
    for key, value in document.metadata.items():
        where = f"document {document.id!r}: metadata {key!r}"
        if not isinstance(key, str):
            raise ValueError(f"{where}: a key must be a string")
        try:
            kept[key] = to_json_value(value)
            json.dumps({key: kept[key]}, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        if "\\u0000" in json.dumps({key: kept[key]}):
            raise ValueError(f"{where} has a NUL character")
    written = json.dumps(kept, ensure_ascii=False, allow_nan=False, sort_keys=True)
    _check_length(f"document {document.id!r}: its metadata", written, MAX_METADATA_CHARS)
    return written
