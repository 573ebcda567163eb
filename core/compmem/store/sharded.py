"""A folder of shards: ordinary stores side by side, which open as one.

A document lies in the shard that the hash of its id names. A block's number is made of its number within the shard and
of the shard, so numbers stay what they are; they rise in the order of adding over all shards, as in one folder, since
they decide between equal scores. Terms are counted over all shards, so that scores are comparable.
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import repeat
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from compmem.config import VectorType
from compmem.errors import CorruptStoreError
from compmem.locks import Lock
from compmem.schema import Chunk, Document, KVStates, MemoryBlock
from compmem.store import lexical
from compmem.store.admitted import AdmittedWords
from compmem.store.blocks import Numbers
from compmem.store.folder import Folder
from compmem.store.info import StoreInfo
from compmem.store.lexical import PER_NAME
from compmem.store.manifest import JSON
from compmem.store.snapshot import DocumentInfo, Filter, Snapshot
from compmem.store.store import Store
from compmem.store.vectors import ChunkVectors
from compmem.text.tokenize import NameKind

SHARDS: Final = "shards.json"
"""The file that makes a folder one of shards."""

MOST: Final = 256
"""Shards of one folder."""


def shard_of(document_id: str, shards: int) -> int:
    """The shard of a document."""
    return zlib.crc32(document_id.encode("utf-8", "surrogatepass")) % shards


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
    return ShardedStore.open(path) if os.path.lexists(Path(path) / SHARDS) else Store.open(path)


class ShardedStore(Store):
    """Stores that are asked, written and checked as one. Each is written by one writer at a time."""

    def __init__(self, path: Path, shards: Sequence[Store]) -> None:
        self.path = path
        self.shards = tuple(shards)
        self.config = shards[0].config
        self._lengths: dict[tuple[int, int], float] = {}
        self._guard = Lock()

    @classmethod
    def create_shards(
        cls, path: Path | str, shards: int, *, config: Mapping[str, Any], vectors: VectorType
    ) -> "ShardedStore":
        """Empty shards in a new or empty folder.

        Raises:
            ValueError: The number of shards is out of its range, or the folder holds something.
        """
        if isinstance(shards, bool) or not isinstance(shards, int) or not 1 <= shards <= MOST:
            raise ValueError(f"shards={shards!r} must be from 1 to {MOST}")
        folder = Folder(Path(path))
        folder.prepare(shards=True)
        made = [_new_shard(shard_path(folder.path, n), config, vectors) for n in range(shards)]
        with folder.placing(folder.path / SHARDS) as file:  # last: a killed call is done again
            file.write_text(json.dumps({"shards": shards}), encoding="utf-8")
        return cls(folder.path, made)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """The shards in a folder. Raises what `open_store` raises."""
        folder = Folder(Path(path))
        opened: list[Store] = []
        try:
            for number in range(_count(folder)):
                place = shard_path(folder.path, number)
                if place.is_symlink():
                    raise CorruptStoreError(f"shard {number} of {str(path)!r} is a link, which is not followed")
                opened.append(Store.open(place))
                if opened[-1].config != opened[0].config:
                    raise CorruptStoreError(
                        f"shard {number} of {str(path)!r} was made with other settings than the first"
                    )
        except BaseException:
            for store in opened:
                store.close()
            raise
        return cls(folder.path, opened)

    @property
    def temporary(self) -> bool:
        """Shards are never temporary."""
        return False

    @property
    def generation(self) -> int:
        """A number that is another one after every commit to any shard."""
        return _combined([store.generation for store in self.shards])

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """A view of every shard, each consistent, for as long as the block lasts."""
        with ExitStack() as held:
            yield ShardedSnapshot([held.enter_context(store.snapshot()) for store in self.shards], self._length)

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
        numbers: Iterable[int] | None = None,
    ) -> None:
        """Add documents, all or none of those of one shard. Raises what `Store.add` raises.

        Blocks are numbered through all shards, so that their order is that of one folder.
        """
        parts: dict[int, list[tuple[Document, Iterable[MemoryBlock]]]] = {}
        starts: dict[int, list[int]] = {}
        free, entries = self.next_block, list(documents)
        for place, ((document, blocks), number) in enumerate(zip(entries, numbers or repeat(0), strict=False), 1):
            shard, start = shard_of(document.id, len(self.shards)), max(free, number)
            starts.setdefault(shard, []).append(start)
            if place < len(entries):  # the last ones are not counted, so they may be generated during the write
                blocks = list(blocks)
                free = start + len(blocks)
            parts.setdefault(shard, []).append((document, blocks))
        if parts:
            record()  # before the blocks: no block is without the fact which model made it
        for shard, part in parts.items():
            self.shards[shard].add(part, numbers=starts[shard])

    @property
    def next_block(self) -> int:
        """Number of the next block, greater than that of every shard."""
        return max(store.next_block for store in self.shards)

    def hashes(self, ids: Sequence[str]) -> dict[str, str]:
        """The content hash of each of these documents that is known."""
        found = [self.shards[shard].hashes(part) for shard, part in self._parted(ids).items()]
        return {name: digest for part in found for name, digest in part.items()}

    def delete(self, ids: Sequence[str]) -> int:
        """Delete documents; the number that were there. Raises what `Store.delete` raises."""
        return sum(self.shards[shard].delete(part) for shard, part in self._parted(ids).items())

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
        (other.path / SHARDS).write_text(json.dumps({"shards": len(self.shards)}), encoding="utf-8")

    def verify(self) -> list[str]:
        """Problems found after reading everything; a document in a wrong shard is one."""
        problems = [f"shard {n}: {told}" for n, store in enumerate(self.shards) for told in store.verify()]
        for number, store in enumerate(self.shards):
            with store.snapshot() as snapshot:
                wrong = [d.id for d in snapshot.documents() if shard_of(d.id, len(self.shards)) != number]
            problems += [f"shard {number}: document {name!r} belongs to another shard" for name in wrong]
        return problems

    def put_meta(self, key: str, value: JSON) -> None:
        """Keep a small JSON fact in every shard."""
        for store in self.shards:
            store.put_meta(key, value)

    def get_meta(self, key: str) -> JSON:
        """The fact under a name, or None; shards that hold none are passed over."""
        return next((fact for store in self.shards if (fact := store.get_meta(key)) is not None), None)

    def info(self) -> StoreInfo:
        """What all shards hold together."""
        first, *others = [store.info() for store in self.shards]
        summed = ("documents", "blocks", "sentences", "characters", "deleted", "vector_bytes", "kv_bytes", "text_bytes")
        totals = {name: getattr(first, name) + sum(getattr(o, name) for o in others) for name in summed}
        dims = [info.dim for info in (first, *others) if info.dim is not None]
        return replace(first, **totals, dim=dims[0] if dims else None)

    def close(self) -> None:
        """Close every shard."""
        for store in self.shards:
            store.close()

    def _parted(self, ids: Sequence[str]) -> dict[int, list[str]]:
        parts: dict[int, list[str]] = {}
        for name in ids:
            parts.setdefault(shard_of(name, len(self.shards)), []).append(name)
        return parts

    def _length(self, shard: int, snapshot: Snapshot) -> float:
        """Terms in all blocks of a shard, counted once a generation."""
        key = (shard, snapshot.generation)
        with self._guard:
            known = self._lengths.get(key)
        if known is None:
            known = snapshot.within(snapshot.select(None)).length()
            with self._guard:
                self._lengths = {k: v for k, v in self._lengths.items() if k[0] != shard} | {key: known}
        return known


class ShardedSnapshot(Snapshot):
    """Views of all shards, as one. Blocks have numbers of their own: number within the shard * shards + shard."""

    def __init__(self, parts: Sequence[Snapshot], length: Any) -> None:
        self.parts = tuple(parts)
        self._length = length
        self._everything: ShardedWords | None = None

    @property
    def generation(self) -> int:
        """A number that is another one for every other view."""
        return _combined([part.generation for part in self.parts])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def select(self, filter: Filter | None) -> Numbers:
        """Numbers of the live blocks that a filter admits, rising. Raises what `Snapshot.select` raises."""
        found = [self._numbers(n, part.select(filter)) for n, part in enumerate(self.parts)]
        return np.sort(np.concatenate(found))

    def chunks(self, blocks: Sequence[int] | Numbers) -> list[Chunk]:
        """The chunks of blocks by number, in the order asked. Raises what `Snapshot.chunks` raises."""
        return self._gathered(blocks, lambda part, own: part.chunks(own))

    def blocks(self, blocks: Sequence[int] | Numbers, *, kv: bool = True) -> list[MemoryBlock]:
        """Blocks by number, in the order asked. Raises what `Snapshot.blocks` raises."""
        return self._gathered(blocks, lambda part, own: part.blocks(own, kv=kv))

    def kv_states(self, blocks: Sequence[int] | Numbers) -> list[KVStates]:
        """The KV states alone, in the order asked. Raises what `Snapshot.kv_states` raises."""
        return self._gathered(blocks, lambda part, own: part.kv_states(own))

    def shard_vectors(self) -> list[ChunkVectors]:
        """The whole-chunk vectors of each shard, under the numbers of this view."""
        found = [part.vectors() for part in self.parts]
        return [vectors.renumbered(self._numbers(n, vectors.numbers)) for n, vectors in enumerate(found)]

    def within(self, admitted: Numbers) -> "ShardedWords":  # type: ignore[override]
        """The lexical indexes as if they held only these blocks, rising by number."""
        parts = [part.within(self._own(n, admitted)) for n, part in enumerate(self.parts)]
        return ShardedWords(parts, sum(part.length() for part in parts))

    @property
    def words(self) -> "ShardedWords":
        """The lexical indexes of all shards, as one."""
        if self._everything is None:
            parts = [part.within(part.select(None)) for part in self.parts]
            length = sum(self._length(n, part) for n, part in enumerate(self.parts))
            self._everything = ShardedWords(parts, length, self.parts)
        return self._everything

    def lexical(self, terms: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """Blocks that hold any of these terms with their BM25 score, best first."""
        return self.words.lexical(terms, limit)

    def document_frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """The number of blocks that hold each term."""
        return self.words.document_frequency(terms)

    def phrase(self, words: Sequence[str], limit: int) -> list[int]:
        """Blocks in which these words follow one another, by number."""
        return self.words.phrase(words, limit)

    def named(self, names: Iterable[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks that answer to each name, titles first; unknown names are left out."""
        return self.words.named(names, per_name)

    def documents(self, filter: Filter | None = None) -> Iterator[DocumentInfo]:
        """The documents that a filter admits, shard by shard."""
        for part in self.parts:
            yield from part.documents(filter)

    def document(self, document_id: str) -> Document | None:
        """A document with its text, or None."""
        return self.parts[shard_of(document_id, len(self.parts))].document(document_id)

    def document_blocks(self, document_id: str) -> list[int]:
        """Numbers of a document's blocks in order; none for an unknown document."""
        shard = shard_of(document_id, len(self.parts))
        return [n * len(self.parts) + shard for n in self.parts[shard].document_blocks(document_id)]

    def _numbers(self, shard: int, own: Numbers) -> Numbers:
        return own * len(self.parts) + shard

    def _own(self, shard: int, numbers: Numbers) -> Numbers:
        own: Numbers = numbers[numbers % len(self.parts) == shard] // len(self.parts)
        return own

    def _gathered(self, blocks: Sequence[int] | Numbers, fetch: Any) -> list[Any]:
        asked = np.asarray(blocks, np.int64)
        found: dict[int, Any] = {}
        for shard, part in enumerate(self.parts):
            own = self._own(shard, asked).tolist()
            if own:
                found.update(zip((n * len(self.parts) + shard for n in own), fetch(part, own), strict=True))
        return [found[number] for number in asked.tolist()]


class ShardedWords:
    """The words of the blocks of several shards, counted over all of them."""

    def __init__(self, parts: Sequence[AdmittedWords], length: float, whole: Sequence[Snapshot] | None = None) -> None:
        self._parts = parts
        self._counting: Sequence[AdmittedWords | Snapshot] = parts if whole is None else whole
        self._mean = max(length / max(len(self), 1), 1.0)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def document_frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """The number of blocks that hold each term."""
        counts = [part.document_frequency(terms) for part in self._counting]
        return {term: sum(count[term] for count in counts) for term in terms}

    def lexical(self, terms: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """Blocks that hold any of the terms with their BM25 score, best first."""
        cut = list(dict.fromkeys(term[: lexical.LONGEST_TERM] for term in terms))
        frequency = self.document_frequency(cut)
        asked = {term: frequency[term] for term in lexical.worth_asking(frequency, len(self))}
        found = [part.ranked(asked, limit, len(self), self._mean) for part in self._parts]
        rows = [(self._number(n, own), score) for n, part in enumerate(found) for own, score in part]
        return sorted(rows, key=lambda row: (-row[1], row[0]))[: max(limit, 0)]

    def phrase(self, words: Sequence[str], limit: int) -> list[int]:
        """Blocks in which these words follow one another, by number."""
        found = [self._number(n, own) for n, part in enumerate(self._parts) for own in part.phrase(words, limit)]
        return sorted(found)[: max(limit, 0)]

    def named(self, names: Iterable[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks that answer to each name, titles first; names that none answers to are left out."""
        asked, found = list(names), dict[str, list[tuple[int, NameKind]]]()
        for shard, part in enumerate(self._parts):
            for name, blocks in part.named(asked, per_name).items():
                found.setdefault(name, []).extend((self._number(shard, own), kind) for own, kind in blocks)
        order = {kind: place for place, kind in enumerate(lexical.KINDS)}
        ranked = {n: sorted(b, key=lambda row: (order[row[1]], row[0])) for n, b in found.items()}
        return {name: ranked[name][:per_name] for name in asked if name in ranked}

    def _number(self, shard: int, own: int) -> int:
        return own * len(self._parts) + shard


def _new_shard(path: Path, config: Mapping[str, Any], vectors: VectorType) -> Store:
    """An empty shard; the one that a killed call has made is taken."""
    if path.is_symlink() or not store_exists(path):
        return Store.create(path, config=config, dim=None, vectors=vectors)
    store = Store.open(path)
    if store.info().documents or store.config != json.loads(json.dumps(dict(config))):
        store.close()
        raise ValueError(f"{str(path)!r} has an index already: choose another folder")
    return store


def _combined(generations: Sequence[int]) -> int:
    """One number for several, each below 2**48."""
    return sum(generation << (48 * place) for place, generation in enumerate(generations))


def _count(folder: Folder) -> int:
    try:
        with folder.open(folder.path / SHARDS) as stream:
            count = json.loads(stream.read(1000))["shards"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise CorruptStoreError(f"{SHARDS} in {str(folder.path)!r} cannot be read") from error
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= MOST:
        raise CorruptStoreError(f"{SHARDS} in {str(folder.path)!r} names {count!r} shards")
    return count
