"""The folder on disk: manifest, vectors, KV segments, lexical index; add, delete, compact, verify. It uses no model."""

from compmem.store.folder_store import FolderStore
from compmem.store.info import KV_WRITTEN, StoreInfo
from compmem.store.interface import DocumentInfo, Snapshot, Store
from compmem.store.manifest import FORMAT, JSON
from compmem.store.records import check_document, content_hash
from compmem.store.shard_views import ALL_BLOCKS_KEY, ShardedSnapshot, ShardPart, TermTotals, shard_of
from compmem.store.sharded import (
    SHARDS,
    ShardedStore,
    open_store,
    shard_path,
    store_exists,
    sum_infos,
    verify_shard,
)
from compmem.store.snapshot import FolderSnapshot
from compmem.store.transient import TransientLexicalIndex
from compmem.store.vectors import ChunkVectors

__all__ = [
    "ALL_BLOCKS_KEY",
    "FORMAT",
    "JSON",
    "KV_WRITTEN",
    "SHARDS",
    "ChunkVectors",
    "DocumentInfo",
    "FolderSnapshot",
    "FolderStore",
    "ShardPart",
    "ShardedSnapshot",
    "ShardedStore",
    "Snapshot",
    "Store",
    "StoreInfo",
    "TermTotals",
    "TransientLexicalIndex",
    "check_document",
    "content_hash",
    "open_store",
    "shard_of",
    "shard_path",
    "store_exists",
    "sum_infos",
    "verify_shard",
]
