"""Shards of an index that are open for reading in a process of their own, and what this process is asked.

Words, vectors, filters and blocks are searched and read here. What is returned are numbers, scores and blocks.
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from compmem.config import SearchKind
from compmem.errors import StoreError
from compmem.locks import Lock
from compmem.retrieval.vector_search import DenseSearch, NewestSearch, Scored, dense_search
from compmem.schema import MemoryBlock, Vectors
from compmem.store import (
    ALL_BLOCKS_KEY,
    JSON,
    FolderSnapshot,
    FolderStore,
    ShardPart,
    StoreInfo,
    TermTotals,
    verify_shard,
)

MAX_OPEN_VIEWS: Final = 256
"""Maximum number of open views; beyond that, the one that was not used for the longest time is closed."""

IDLE_SECONDS: Final = 600.0
"""A view that is not used for so long is closed, since it keeps deleted data on disk."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A view of the shards of an actor."""

    view: str
    shards: Mapping[int, tuple[tuple[int, int] | None, int, int]]
    """Of each shard: the identity of its store, its generation, and its number of blocks."""


@dataclass(slots=True)
class _View:
    snapshots: ExitStack
    parts: Mapping[int, "_Part"]
    used: float = field(default_factory=time.monotonic)


class _Part(ShardPart):
    """What one shard answers, searches by vector included."""

    def __init__(
        self,
        snapshot: FolderSnapshot,
        length: Callable[[FolderSnapshot], float],
        search: Callable[[FolderSnapshot], DenseSearch],
    ) -> None:
        super().__init__(snapshot, length)
        self._search = search

    def search_with_scores(self, key: int, queries: Vectors, k: int) -> list[Scored]:
        """The k nearest blocks of a selection for each query `[queries, dim]`."""
        return self._search(self.snapshot).search_with_scores(
            queries, k, self.lexical_index(key).numbers if key != ALL_BLOCKS_KEY else None
        )

    def pack_blocks(self, blocks: Sequence[int]) -> tuple[list[MemoryBlock], list[int], Vectors]:
        """Blocks without vectors and KV states, the rows of each, and all rows `[rows, dim]`, for `unpack_blocks`."""
        found = self.snapshot.blocks(blocks, kv=False)
        rows = [block.vectors for block in found if block.vectors is not None]
        counts = [0 if block.vectors is None else len(block.vectors) for block in found]
        every = np.concatenate(rows) if rows else np.empty((0, 0), np.float32)
        return [replace(block, vectors=None) for block in found], counts, every


class OpenShards:
    """Some shards of an index, opened for reading in one process; views of them stay open until they are released.

    Args:
        folders: The folder of each shard.
        search: The kind of search by vectors, which runs on the CPU.
    """

    def __init__(self, folders: Mapping[int, Path], search: SearchKind) -> None:
        self._folders = dict(folders)
        self._kind = search
        self._stores: dict[int, FolderStore] = {}
        self._totals = TermTotals()
        self._searches: dict[int, NewestSearch] = {}
        self._views: dict[str, _View] = {}
        self._guard = Lock()
        threading.Thread(target=self._watch, name="compmem-views", daemon=True).start()

    def open(self) -> Opened:
        """A view of the last commit of each shard.

        Raises:
            StoreError: A shard cannot be opened.
        """
        try:
            view = self._open_view()
        except StoreError:
            self._close_stores()  # another index may be in the folder now
            view = self._open_view()
        name = secrets.token_hex(8)
        with self._guard:
            self._views[name] = view
            longest_unused = sorted(self._views, key=lambda n: self._views[n].used)
        self._close(longest_unused[:-MAX_OPEN_VIEWS])
        shards = {
            shard: (self._store(shard).identity, part.snapshot.generation, part.count())
            for shard, part in view.parts.items()
        }
        return Opened(name, shards)

    def ask(self, view: str, calls: Sequence[tuple[int, str, tuple[Any, ...]]]) -> list[Any]:
        """The result of each call: a shard, a method of `ShardPart`, and its arguments.

        Raises:
            StoreError: The view is not open. Also what the method raises.
        """
        with self._guard:
            known = self._views.get(view)
        if known is None:
            raise StoreError(
                "the view of the shards was closed: the question took too long, or their process was started again; "
                "ask again"
            )
        known.used = time.monotonic()
        return [getattr(known.parts[shard], name)(*args) for shard, name, args in calls]

    def release(self, view: str) -> None:
        """Close a view."""
        self._close([view])

    def close_idle(self, seconds: float = IDLE_SECONDS) -> None:
        """Close the views that were not used for so long."""
        with self._guard:
            idle = [name for name, view in self._views.items() if time.monotonic() - view.used >= seconds]
        self._close(idle)

    def views(self) -> int:
        """The number of open views."""
        return len(self._views)

    def meta(self, key: str) -> list[JSON]:
        """The fact under a key in each shard."""
        return [self._store(shard).get_meta(key) for shard in self._folders]

    def infos(self) -> list[StoreInfo]:
        """Statistics of each shard."""
        return [self._store(shard).info() for shard in self._folders]

    def verify(self, shards: int) -> list[str]:
        """Problems found after reading everything."""
        return [problem for shard in self._folders for problem in verify_shard(self._store(shard), shard, shards)]

    def _store(self, shard: int) -> FolderStore:
        with self._guard:
            if shard not in self._stores:
                self._stores[shard] = FolderStore.open(self._folders[shard])
            return self._stores[shard]

    def _open_view(self) -> _View:
        snapshots, parts = ExitStack(), dict[int, _Part]()
        try:
            for shard in self._folders:
                snapshot = snapshots.enter_context(self._store(shard).snapshot())
                parts[shard] = _Part(snapshot, partial(self._totals.of, shard), partial(self._search, shard))
        except BaseException:
            snapshots.close()
            raise
        return _View(snapshots, parts)

    def _search(self, shard: int, snapshot: FolderSnapshot) -> DenseSearch:
        with self._guard:
            newest = self._searches.setdefault(shard, NewestSearch())
        vectors = snapshot.vectors()
        return newest.of(
            snapshot.generation, lambda: dense_search(vectors, self._kind), lambda: dense_search(vectors, "exact")
        )

    def _close(self, views: Sequence[str]) -> None:
        with self._guard:
            found = [self._views.pop(name) for name in views if name in self._views]
        for view in found:
            view.snapshots.close()

    def _watch(self) -> None:
        while True:
            time.sleep(IDLE_SECONDS / 10)
            self.close_idle()

    def _close_stores(self) -> None:
        with self._guard:
            stores, self._stores = self._stores, {}
            self._totals, self._searches = TermTotals(), {}
        for store in stores.values():
            store.close()


def unpack_blocks(blocks: Sequence[MemoryBlock], counts: Sequence[int], rows: Vectors) -> list[MemoryBlock]:
    """What `pack_blocks` packed. The rows are copied, so that the memory in which they came is free again."""
    parts = np.split(np.array(rows), np.cumsum(counts)[:-1]) if counts else []
    return [
        replace(block, vectors=own) if count else block for block, count, own in zip(blocks, counts, parts, strict=True)
    ]
