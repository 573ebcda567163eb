"""The folder on disk: manifest, vectors, KV segments, lexical index; add, delete, compact, verify. No model in here."""

from compmem.store.manifest import FORMAT, JSON
from compmem.store.records import content_hash
from compmem.store.snapshot import DocumentInfo, Filter, Snapshot
from compmem.store.store import KV_WRITTEN, Store, StoreInfo
from compmem.store.transient import TransientWords
from compmem.store.vectors import ChunkVectors

__all__ = [
    "FORMAT",
    "JSON",
    "KV_WRITTEN",
    "ChunkVectors",
    "DocumentInfo",
    "Filter",
    "Snapshot",
    "Store",
    "StoreInfo",
    "TransientWords",
    "content_hash",
]
