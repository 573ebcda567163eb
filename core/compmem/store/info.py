"""Statistics of a store: contents and size on disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compmem.config import VectorType
from compmem.store.manifest import FORMAT, JSON, Rows, read_state
from compmem.store.vectors import RowFormat

KV_WRITTEN: Final = "kv written"
"""Key of a fact: the number of document tokens and of blocks for which KV states were ever written."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoreInfo:
    """Statistics of a store: contents and size on disk."""

    documents: int
    blocks: int
    sentences: int
    characters: int
    deleted: int
    """Deleted blocks whose disk space `compact` would free."""
    dim: int | None
    """Dimensions of the vectors. None: there are none yet."""
    vector_bytes: int
    kv_bytes: int
    kv_bytes_per_token: float | None
    """Bytes of KV states per document token. None: there are none, or they were not counted."""
    text_bytes: int
    """Bytes of texts, lexical index and everything else in the manifest, with its log."""
    format: int


def store_info(rows: Rows, vectors: VectorType, written: JSON, logs: Sequence[Path]) -> StoreInfo:
    """The statistics of one commit.

    Args:
        rows: Queries of that commit.
        vectors: How vectors are stored.
        written: The fact `KV_WRITTEN`.
        logs: The files of the manifest.
    """
    state = read_state(rows)
    (documents,) = rows("SELECT count(id) FROM documents")[0]  # row by row: count(*) of damaged pages may not end
    blocks, sentences, characters = rows("SELECT count(*), total(sentences), total(characters) FROM blocks")[0]
    kv_bytes, kv_blocks = rows("SELECT total(bytes), total(blocks) FROM kv")[0]
    width = RowFormat(vectors, state.dim or 0).width
    return StoreInfo(
        documents=documents,
        blocks=blocks,
        sentences=int(sentences),
        characters=int(characters),
        deleted=state.deleted,
        dim=state.dim,
        vector_bytes=width * (state.chunk_rows + state.sentence_rows),
        kv_bytes=int(kv_bytes),
        kv_bytes_per_token=_bytes_per_token(kv_bytes, kv_blocks, written),
        text_bytes=sum(file.stat().st_size for file in logs if file.exists()),
        format=FORMAT,
    )


def _bytes_per_token(size: float, blocks: float, written: JSON) -> float | None:
    if not blocks or not isinstance(written, dict):
        return None
    tokens, counted = written.get("tokens"), written.get("blocks")
    if not isinstance(tokens, int) or not isinstance(counted, int) or tokens < 1 or counted < 1:
        return None
    return round(size / blocks / (tokens / counted), 2)
