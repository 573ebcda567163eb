"""Verification: every checksum, hash and row of one snapshot, and the lexical index against the texts."""

from collections import Counter
from collections.abc import Iterator
from typing import Final

from compmem.errors import CorruptStoreError, StoreError
from compmem.schema import Chunk, Document
from compmem.store import lexical
from compmem.store.blocks import LocatedBlock, parse_metadata, raw_rows, read_blocks, read_kv_tensors
from compmem.store.cache import Cache
from compmem.store.manifest import Rows, State
from compmem.store.records import content_hash
from compmem.store.vectors import check_segment, segments_of

_ORPHANS: Final = {
    "blocks without a document": "SELECT number FROM blocks WHERE document NOT IN (SELECT key FROM documents)",
    "blocks without a text": "SELECT number FROM blocks WHERE number NOT IN (SELECT number FROM texts)",
    "texts without a block": "SELECT number FROM texts WHERE number NOT IN (SELECT number FROM blocks)",
    "names without a block": "SELECT DISTINCT block FROM names WHERE block NOT IN (SELECT number FROM blocks)",
    "documents without a block": "SELECT id FROM documents WHERE key NOT IN (SELECT document FROM blocks)",
    "blocks whose vector another block has": (
        "SELECT number FROM blocks WHERE row IN "
        "(SELECT row FROM blocks WHERE row IS NOT NULL GROUP BY row HAVING count(*) > 1)"
    ),
    "blocks in a KV segment that is not listed": (
        "SELECT number FROM blocks WHERE kv IS NOT NULL AND kv NOT IN (SELECT serial FROM kv)"
    ),
}
_MAX_EXAMPLES: Final = 5


def verify(rows: Rows, state: State, cache: Cache) -> list[str]:
    """Problems found in this snapshot; empty if there are none."""
    try:
        broken = [str(text) for (text,) in rows("PRAGMA integrity_check(20)") if text != "ok"]
        if broken:
            return [f"manifest: {text}" for text in broken]
        index = _LexicalCheck()
        return [
            *_orphans(rows),
            *_segments(rows, state, cache),
            *_documents(rows, state, cache, index),
            *index.problems(rows),
        ]
    except StoreError as error:
        return [str(error)]


class _LexicalCheck:
    """Counts the terms of every text and compares them with the counts in the index."""

    def __init__(self) -> None:
        self._uses: Counter[str] = Counter()
        self._blocks: Counter[str] = Counter()
        self._stale = False

    def add(self, chunk: Chunk) -> None:
        terms = lexical.indexed_terms(chunk)
        self._uses.update(terms)
        self._blocks.update(set(terms))

    def problems(self, rows: Rows) -> Iterator[str]:
        if not lexical.is_current(rows):
            return  # written by another version of the library; the next write rebuilds it
        found = {term: (blocks, uses) for term, blocks, uses in rows("SELECT term, doc, cnt FROM vocabulary")}
        expected = {term: (self._blocks[term], uses) for term, uses in self._uses.items()}
        wrong = sorted(term for term in found.keys() | expected.keys() if found.get(term) != expected.get(term))
        if wrong:
            yield f"lexical index: {len(wrong)} terms do not match the texts, such as {_some(wrong)}"


def _orphans(rows: Rows) -> Iterator[str]:
    for what, sql in _ORPHANS.items():
        if found := [key for (key,) in rows(sql)]:
            yield f"{len(found)} {what}: {_some(found)}"


def _segments(rows: Rows, state: State, cache: Cache) -> Iterator[str]:
    raw, layout = cache.chunk_rows(state), cache.layout(state)
    for segment in segments_of(rows, state.chunk_rows):
        try:
            check_segment(raw, segment, layout)
        except CorruptStoreError as error:
            yield str(error)


def _documents(rows: Rows, state: State, cache: Cache, index: _LexicalCheck) -> Iterator[str]:
    for key, name, title, metadata, expected in rows("SELECT key, id, title, metadata, hash FROM documents"):
        chunks: list[Chunk] = []
        whole = True
        for (number,) in rows("SELECT number FROM blocks WHERE document = ? ORDER BY ordinal", key):
            try:
                for block in read_blocks(rows, [number]):
                    chunks.append(block.chunk)
                    index.add(block.chunk)
                    yield from _block(rows, state, cache, block)
            except CorruptStoreError as error:
                whole = False
                yield str(error)
        try:
            document = Document(
                id=name,
                title=title,
                metadata=parse_metadata(metadata, name),
                text="".join(chunk.text for chunk in chunks),
            )
            if whole and content_hash(document, chunks) != expected:
                yield f"document {name!r} does not match its hash"
        except (CorruptStoreError, ValueError) as error:
            yield str(error)


def _block(rows: Rows, state: State, cache: Cache, block: LocatedBlock) -> Iterator[str]:
    location, chunk = block.location, block.chunk
    try:
        if location.row is not None:
            raw_rows(location, cache.chunk_rows(state), cache.sentence_rows(state), cache.layout(state))
    except CorruptStoreError as error:
        yield str(error)
    try:
        if location.kv is not None:
            read_kv_tensors(location, cache.kv)
    except CorruptStoreError as error:
        yield str(error)
    names = set(rows("SELECT name, kind, block FROM names WHERE block = ?", location.number))
    if names != set(lexical.name_rows(location.number, chunk)):
        yield f"the names of {location} do not match its text"


def _some(values: list[object] | list[str]) -> str:
    return ", ".join(repr(value) for value in values[:_MAX_EXAMPLES]) + (", ..." if len(values) > _MAX_EXAMPLES else "")
