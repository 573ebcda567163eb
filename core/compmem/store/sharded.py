"""A folder of shards: stores that are opened, written and searched as one.

The hash of a document's id decides its shard. A block's number is computed from its number within the shard and the
number of the shard, so it does not change. Numbers ascend in the order of adding over all shards, as in one folder,
since they decide between equal scores. Terms are counted over all shards, so that scores are comparable.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

from compmem.config import VectorType
from compmem.errors import CorruptStoreError
from compmem.schema import Document, MemoryBlock
from compmem.store.folder import Folder
from compmem.store.folder_store import FolderStore
from compmem.store.info import StoreInfo
from compmem.store.interface import Snapshot, Store
from compmem.store.manifest import JSON
from compmem.store.shard_views import LocalShardedSnapshot, ShardPart, TermTotals, combine_generations, shard_of

SHARDS: Final = "shards.json"
"""The file that makes a folder one of shards."""

MAX_SHARDS: Final = 256
"""Maximum number of shards of a folder."""


def shard_path(path: Path, shard: int) -> Path:
    """The folder of one shard."""
    return path / f"shard-{shard:03d}"


def store_exists(path: Path | str) -> bool:
    """Whether a folder is the folder of an index."""
    return any(os.path.lexists(file) for file in (Path(path) / SHARDS, Folder(Path(path)).manifest))


def open_store(path: Path | str) -> Store:
    """The store in a folder, or in the shards of a folder.

    Raises:
        StoreError: There is none.
        CorruptStoreError: A shard is missing, or not like the others.
    """
    return ShardedStore.open(path) if os.path.lexists(Path(path) / SHARDS) else FolderStore.open(path)


class ShardedStore(Store):
    """Stores that are asked, written and checked as one. Each is written by one writer at a time."""

    def __init__(self, path: Path, shards: Sequence[FolderStore]) -> None:
        self.path = path
        self.shards = tuple(shards)
        self.config = shards[0].config
        self.folders = [store.path for store in self.shards]
        self.shard_count = len(self.shards)
        self._totals = TermTotals()

    @classmethod
    def create_shards(
        cls, path: Path | str, shards: int, *, config: Mapping[str, Any], vectors: VectorType
    ) -> "ShardedStore":
        """Empty shards in a new or empty folder.

        Raises:
            ValueError: The number of shards is out of its range, or the folder holds something.
        """
        if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= MAX_SHARDS:
            raise ValueError(f"shards={shards!r} must be from 1 to {MAX_SHARDS}")
        folder = Folder(Path(path))
        folder.prepare(shards=True)
        made: list[FolderStore] = []
        with ExitStack() as opened:
            for number in range(shards):
                made.append(_new_shard(shard_path(folder.path, number), config, vectors))
                opened.callback(made[-1].close)
            _place_count(folder, shards)  # last: a killed call is done again
            opened.pop_all()
        return cls(folder.path, made)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The shards in a folder. Raises what `open_store` raises."""
        folder = Folder(Path(path))
        shards: list[FolderStore] = []
        with ExitStack() as opened:
            for number in range(_count(folder)):
                place = shard_path(folder.path, number)
                if place.is_symlink():
                    raise CorruptStoreError(f"shard {number} of {str(path)!r} is a link, which is not followed")
                shards.append(FolderStore.open(place))
                opened.callback(shards[-1].close)
                if shards[-1].config != shards[0].config:
                    raise CorruptStoreError(
                        f"shard {number} of {str(path)!r} was made with other settings than the first"
                    )
            opened.pop_all()
        return cls(folder.path, shards)

    @property
    def generation(self) -> int:
        """A number that is another one after every commit to any shard."""
        return combine_generations([store.generation for store in self.shards])

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """A view of every shard, each consistent, for as long as the block lasts."""
        with ExitStack() as held:
            opened = [held.enter_context(store.snapshot()) for store in self.shards]
            yield LocalShardedSnapshot([ShardPart(part, partial(self._totals.of, n)) for n, part in enumerate(opened)])

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writers' locks of all shards for the block."""
        with ExitStack() as held:
            for store in self.shards:
                held.enter_context(store.writing())
            yield

    def add(
        self,
        documents: Iterable[tuple[Document, Iterable[MemoryBlock]]],
        *,
        record: Callable[[], None] = lambda: None,
    ) -> None:
        """Add documents, all or none of those of one shard. Raises what `Store.add` raises.

        Blocks are numbered through all shards, so that their order is that of one folder.
        """
        parts: dict[int, list[tuple[Document, Iterable[MemoryBlock]]]] = {}
        starts: dict[int, list[int]] = {}
        free, entries = max(store.next_block for store in self.shards), list(documents)
        for place, (document, blocks) in enumerate(entries, 1):
            shard = shard_of(document.id, len(self.shards))
            starts.setdefault(shard, []).append(free)
            if place < len(entries):  # the last ones are not counted, so they may be generated during the write
                blocks = list(blocks)
                free += len(blocks)
            parts.setdefault(shard, []).append((document, blocks))
        if parts:
            record()  # before the blocks: no block is without the fact which model made it
        for shard, part in parts.items():
            self.shards[shard].add(part, numbers=starts[shard])

    def hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """The content hash of each of these documents that is known."""
        found = [self.shards[shard].hashes(part) for shard, part in self._ids_by_shard(ids).items()]
        return {name: digest for part in found for name, digest in part.items()}

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; returns how many existed. Raises what `Store.delete` raises."""
        return sum(self.shards[shard].delete(part) for shard, part in self._ids_by_shard(ids).items())

    def compact(self) -> None:
        """Compact every shard. Raises what `Store.compact` raises."""
        for store in self.shards:
            store.compact()

    def copy_to(self, path: Path | str) -> None:
        """Copy every shard into a new or empty folder. Raises what `Store.copy_to` raises."""
        other = Folder(Path(path))
        other.prepare()
        with self.writing():
            for number, store in enumerate(self.shards):
                store.copy_to(shard_path(other.path, number))
        _place_count(other, len(self.shards))

    def verify(self) -> list[str]:
        """Problems found after reading everything; a document in a wrong shard is one."""
        count = len(self.shards)
        return [problem for n, store in enumerate(self.shards) for problem in verify_shard(store, n, count)]

    def put_meta(self, key: str, value: JSON) -> None:
        """Keep a small JSON fact in every shard."""
        for store in self.shards:
            store.put_meta(key, value)

    def get_meta(self, key: str) -> JSON:
        """The fact under a name, or None; shards without it are skipped."""
        return next((fact for store in self.shards if (fact := store.get_meta(key)) is not None), None)

    def info(self) -> StoreInfo:
        """What all shards hold together."""
        return sum_infos([store.info() for store in self.shards])

    def close(self) -> None:
        """Close every shard."""
        for store in self.shards:
            store.close()

    def _ids_by_shard(self, ids: Sequence[str]) -> dict[int, list[str]]:
        parts: dict[int, list[str]] = {}
        for name in ids:
            parts.setdefault(shard_of(name, len(self.shards)), []).append(name)
        return parts


def verify_shard(store: Store, shard: int, shards: int) -> list[str]:
    """Problems of one of so many shards, found after reading everything."""
    problems = store.verify()
    try:
        with store.snapshot() as snapshot:
            wrong = [d.id for d in snapshot.documents() if shard_of(d.id, shards) != shard]
    except CorruptStoreError as error:
        wrong, problems = [], problems or [str(error)]
    problems += [f"document {name!r} belongs to another shard" for name in wrong]
    return [f"shard {shard}: {problem}" for problem in problems]


def sum_infos(infos: Sequence[StoreInfo]) -> StoreInfo:
    """What several shards hold together."""
    names = ("documents", "blocks", "sentences", "characters", "deleted", "vector_bytes", "kv_bytes", "text_bytes")
    totals = {name: sum(getattr(info, name) for info in infos) for name in names}
    dims = [info.dim for info in infos if info.dim is not None]
    known = [info for info in infos if info.kv_bytes_per_token]
    tokens = sum(info.kv_bytes / (info.kv_bytes_per_token or 1) for info in known)
    per_token = round(sum(info.kv_bytes for info in known) / tokens, 2) if tokens else None
    return replace(infos[0], **totals, dim=dims[0] if dims else None, kv_bytes_per_token=per_token)


def _new_shard(path: Path, config: Mapping[str, Any], vectors: VectorType) -> FolderStore:
    """An empty shard; the one that a killed call has made is taken."""
    if path.is_symlink() or not store_exists(path):
        return FolderStore.create(path, config=config, vectors=vectors)
    store = FolderStore.open(path)
    if store.info().documents or store.config != json.loads(json.dumps(dict(config))):
        store.close()
        raise ValueError(f"{str(path)!r} has an index already: choose another folder")
    return store


def _place_count(folder: Folder, shards: int) -> None:
    with folder.placing(folder.path / SHARDS) as file:
        file.write_text(json.dumps({"shards": shards}), encoding="utf-8")


def _count(folder: Folder) -> int:
    try:
        with folder.open(folder.path / SHARDS) as stream:
            count = json.loads(stream.read(1000))["shards"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptStoreError(f"{SHARDS} in {str(folder.path)!r} cannot be read") from error
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MAX_SHARDS:
        raise CorruptStoreError(f"{SHARDS} in {str(folder.path)!r} names {count!r} shards")
    return count
