"""Documents on their way into the store: checked, and in the form in which rows hold them."""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from compmem.errors import CorruptStoreError
from compmem.metadata import plain
from compmem.schema import Chunk, Document, MemoryBlock, Vectors
from compmem.store.manifest import parse_json

_UNIT = 1e-2
"""How far the length of a vector may be from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A document that may be written as it is."""

    id: str
    title: str
    metadata: str
    hash: str
    blocks: tuple[MemoryBlock, ...]
    vectors: tuple[Vectors, ...] | None
    """One array a block, `[1 + sentences, dim]`."""


def content_hash(document: Document, chunks: Sequence[Chunk]) -> str:
    """What changes when anything that the store keeps of a document does: texts, metadata, chunk borders.

    Raises:
        ValueError: The metadata is not JSON, or a text cannot be stored.
    """
    digest = hashlib.sha256()
    _feed(digest, document.title, _metadata_json(document), *(c.text for c in chunks))
    for chunk in chunks:
        _feed(digest, *chunk.headings)
        if chunk.context:
            _feed(digest, chunk.context)
        digest.update(pack_spans(chunk.sentences))
    return digest.hexdigest()[:32]


def record_of(document: Document, blocks: Sequence[MemoryBlock]) -> Record:
    """The document as a record.

    Raises:
        ValueError: Something in it cannot be stored; the message names the document.
    """
    name = f"document {document.id!r}"
    if not isinstance(document.id, str) or "\0" in document.id:
        raise ValueError(f"{name}: its id must be a string without NUL characters")
    for what, text in (("id", document.id), ("title", document.title), ("text", document.text)):
        _check_text(name, what, text)
    if not document.text.strip():
        raise ValueError(f"{name} has no text: there is nothing to remember")
    if "".join(block.chunk.text for block in blocks) != document.text:
        raise ValueError(f"{name}: its chunks do not cover its text exactly")
    for block in blocks:
        _check_chunk(name, block.chunk)
    return Record(
        id=document.id,
        title=document.title,
        metadata=_metadata_json(document),
        hash=content_hash(document, [block.chunk for block in blocks]),
        blocks=tuple(blocks),
        vectors=_vectors_of(name, blocks),
    )


def pack_spans(spans: Sequence[tuple[int, int]]) -> bytes:
    """Sentence spans as bytes."""
    return np.asarray(spans, "<u4").reshape(-1, 2).tobytes()


def unpack_spans(data: bytes, length: int) -> tuple[tuple[int, int], ...]:
    """Sentence spans from bytes, within a text of that length."""
    if len(data) % 8:
        raise CorruptStoreError("sentence spans of a block have an impossible length")
    flat = np.frombuffer(data, "<u4").tolist()
    if flat != sorted(flat) or (flat and flat[-1] > length):
        raise CorruptStoreError("sentence spans of a block are out of its text")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def text_crc(text: str, headings: str, spans: bytes) -> int:
    """Checksum of what `texts` holds of a block."""
    return zlib.crc32(spans, zlib.crc32(headings.encode(), zlib.crc32(text.encode())))


def headings_json(chunk: Chunk) -> str:
    """A chunk's headings as a row holds them: a list, or an object with the context where it has one."""
    headings = list(chunk.headings)
    return json.dumps(
        {"headings": headings, "context": chunk.context} if chunk.context else headings, ensure_ascii=False
    )


def parse_headings(text: str) -> tuple[tuple[str, ...], str]:
    """Headings and context from their row.

    Raises:
        CorruptStoreError: The row holds something else.
    """
    found = parse_json(text, "the headings of a block")
    if isinstance(found, dict) and found.keys() == {"headings", "context"}:
        found, context = found["headings"], found["context"]
    else:
        context = ""
    if not isinstance(found, list) or not all(isinstance(part, str) for part in (*found, context)):
        raise CorruptStoreError("the headings of a block are not a list of strings")
    return tuple(found), context


def _feed(digest: "hashlib._Hash", *texts: str) -> None:
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    digest.update(len(texts).to_bytes(8, "little"))


def _check_text(name: str, what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: its {what} holds the lone surrogate {text[error.start]!r} at {error.start}, which is not text; "
            "decode the source with errors='replace'"
        ) from error


def _check_chunk(name: str, chunk: Chunk) -> None:
    for heading in chunk.headings:
        _check_text(name, "headings", heading)
    _check_text(name, "context", chunk.context)
    edge = 0
    for start, end in chunk.sentences:
        if not edge <= start <= end <= len(chunk.text):
            raise ValueError(f"{name}: sentence span {(start, end)} overlaps another or leaves its chunk")
        edge = end


def _vectors_of(name: str, blocks: Sequence[MemoryBlock]) -> tuple[Vectors, ...] | None:
    given = [block.vectors for block in blocks if block.vectors is not None]
    if not given:
        return None
    if len(given) != len(blocks):
        raise ValueError(f"{name}: some of its blocks have vectors and some have none")
    out = []
    for block, vectors in zip(blocks, given, strict=True):
        array = np.asarray(vectors, np.float32)
        sentences = len(block.chunk.sentences)
        if array.ndim != 2 or len(array) not in ({1 + sentences} if sentences else {1, 2}):
            raise ValueError(f"{name}: vectors of shape {array.shape} for a chunk of {sentences} sentences")
        lengths = np.linalg.norm(array, axis=1)
        if not np.all((np.abs(lengths - 1) < _UNIT) | (lengths == 0)):
            raise ValueError(f"{name}: its vectors must be finite and of length 1, one has length {lengths.max():.4g}")
        out.append(array)
    return tuple(out)


def _metadata_json(document: Document) -> str:
    if not isinstance(document.metadata, Mapping):
        raise ValueError(f"document {document.id!r}: its metadata must be a mapping, not {document.metadata!r}")
    kept = {}
    for key, value in document.metadata.items():
        where = f"document {document.id!r}: metadata {key!r}"
        if not isinstance(key, str):
            raise ValueError(f"{where}: a key must be a string")
        try:
            kept[key] = plain(value)
            json.dumps({key: kept[key]}, ensure_ascii=False, allow_nan=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from error
        if "\\u0000" in json.dumps({key: kept[key]}):
            raise ValueError(f"{where} holds a NUL character")
    return json.dumps(kept, ensure_ascii=False, allow_nan=False, sort_keys=True)
