"""Dense search over the vectors of whole chunks: exact on the CPU or a GPU, or FAISS."""

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from compmem.config import SearchKind
from compmem.locks import Lock
from compmem.schema import Vectors

if TYPE_CHECKING:
    from compmem.store import ChunkVectors

log = logging.getLogger(__name__)

FAISS_FROM = 200_000
"""Number of blocks from which `auto` uses FAISS if it is installed."""

DEVICE_SHARE = 0.5
"""Largest share of a device's free memory that the vectors may take."""


Scored = list[tuple[int, float]]
"""Blocks and their scores, best first; equal scores by number."""

ROUNDING = 1e-4
"""More than the error of a 32-bit inner product of unit vectors, which depends on a row's place in its slice."""


class DenseSearch(ABC):
    """Nearest blocks by the vector of the whole chunk."""

    def search(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[list[int]]:
        """Numbers of the k nearest admitted blocks for each query `[queries, dim]`, nearest first."""
        return [[number for number, _ in row] for row in self.search_with_scores(queries, k, admitted)]

    @abstractmethod
    def search_with_scores(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[Scored]:
        """The k nearest admitted blocks for each query `[queries, dim]`, with inner products."""


@dataclass(frozen=True, slots=True)
class ExactSearch(DenseSearch):
    """Matrix products over memory-mapped vectors on the CPU, one slice at a time."""

    vectors: "ChunkVectors"
    slice_rows: int = 512

    def search_with_scores(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[Scored]:
        """The k nearest admitted blocks for each query `[queries, dim]`, with inner products in 64 bits."""
        vectors = self.vectors if admitted is None else self.vectors.only(admitted)
        if not len(vectors) or not len(queries) or k < 1:
            return [[] for _ in queries]
        scores = self._scores(vectors, queries)
        lowest = torch.topk(torch.from_numpy(scores), min(k, len(vectors)), dim=0).values[-1].numpy() - ROUNDING
        found = []
        for query, own, least in zip(queries, scores.T, lowest, strict=True):
            near = vectors.numbers[own >= least]
            found.append(_best(near, self._exact(vectors, near, query), k))
        return found

    def _exact(self, vectors: "ChunkVectors", blocks: NDArray[np.int64], query: Vectors) -> NDArray[np.float64]:
        """`[blocks]`; equal vectors have equal products, wherever they lie."""
        wide = query.astype(np.float64)
        parts = (blocks[at : at + self.slice_rows] for at in range(0, len(blocks), self.slice_rows))
        return np.concatenate([(vectors.of(part) * wide).sum(1) for part in parts])

    def _scores(self, vectors: "ChunkVectors", queries: Vectors) -> Vectors:
        """`[blocks, queries]`."""
        asked = np.ascontiguousarray(queries.T)
        scores = np.empty((len(vectors), len(queries)), np.float32)
        floats = np.empty((self.slice_rows, vectors.dim), np.float32)
        for start in range(0, len(scores), self.slice_rows):
            # Slices fit in the CPU cache, where bytes are converted to floats without a pass over main memory.
            values, scales = vectors.stored(start, start + self.slice_rows)
            held, part = floats[: len(values)], scores[start : start + len(values)]
            np.copyto(held, values)
            np.matmul(held, asked, out=part)  # a third faster than torch for a few queries
            if scales is not None:
                part *= scales[:, None]
        return scores


@dataclass(frozen=True, slots=True)
class ShardedSearch(DenseSearch):
    """Searches all shards in parallel and merges the nearest blocks."""

    searches: Sequence[DenseSearch]

    def search_with_scores(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[Scored]:
        """The k nearest admitted blocks for each query `[queries, dim]`, with inner products."""
        with ThreadPoolExecutor(len(self.searches)) as pool:
            parts = list(pool.map(lambda search: search.search_with_scores(queries, k, admitted), self.searches))
        return merge_scored(parts, k)


def merge_scored(parts: Sequence[Sequence[Scored]], k: int) -> list[Scored]:
    """For each query the k nearest blocks of all parts, each with a row for every query."""
    rows = ([pair for row in own for pair in row] for own in zip(*parts, strict=True))
    return [sorted(row, key=lambda pair: (-pair[1], pair[0]))[:k] for row in rows]


class NewestSearch:
    """The search over the newest generation of a store's vectors, built once for each by one thread.

    Meanwhile other threads search exactly on the CPU, which needs nothing built; so does who holds an older generation.
    """

    def __init__(self) -> None:
        self._guard = Lock()
        self._generation = -1
        self._search: DenseSearch | None = None
        self._process = os.getpid()

    def of(self, generation: int, build: Callable[[], DenseSearch], exact: Callable[[], DenseSearch]) -> DenseSearch:
        """The search over this generation.

        Args:
            generation: The number of the generation; a later one is greater.
            build: Makes the search; raises what it raises.
            exact: Makes one that needs no time to build.
        """
        with self._guard:
            if generation == self._generation and self._search is not None:
                return self._search
            here = os.getpid()  # a forked child does not have the thread that was building
            if generation < self._generation or (generation == self._generation and self._process == here):
                return exact()
            self._generation, self._process = generation, here
            self._search = None  # gives back its device memory
        try:
            made = build()
        except BaseException:
            with self._guard:
                if self._generation == generation:
                    self._generation = -1
            raise
        with self._guard:
            if self._generation == generation:
                self._search = made
        return made


class DeviceSearch(DenseSearch):
    """Matrix products on a device that stores the vectors; a query copies only its vectors there and numbers back."""

    def __init__(self, vectors: "ChunkVectors", device: torch.device) -> None:
        self._numbers = vectors.numbers
        self._rows = torch.empty(len(vectors), vectors.dim, dtype=torch.float16, device=device)
        for start in range(0, len(vectors), 65536):
            part = vectors.floats(start, start + 65536)
            self._rows[start : start + len(part)] = torch.from_numpy(part).to(device)

    def search_with_scores(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[Scored]:
        """The k nearest admitted blocks for each query `[queries, dim]`, with inner products in 16 bits."""
        places = None if admitted is None else np.flatnonzero(np.isin(self._numbers, admitted))
        count = len(self._numbers) if places is None else len(places)
        if not count or not len(queries) or k < 1:
            return [[] for _ in queries]
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self._rows.device, self._rows.dtype)
        rows = self._rows if places is None else self._rows[torch.from_numpy(places).to(self._rows.device)]
        scores = asked @ rows.T
        lowest = torch.topk(scores, min(k, count), dim=1).values[:, -1:]
        numbers = self._numbers if places is None else self._numbers[places]
        found = [torch.nonzero(row)[:, 0] for row in scores >= lowest]
        return [
            _best(numbers[at.cpu().numpy()], row[at].double().cpu().numpy(), k)
            for at, row in zip(found, scores, strict=True)
        ]


class FaissSearch(DenseSearch):
    """A FAISS index over the vectors of one snapshot: flat, HNSW, or IVF-PQ.

    Raises:
        ImportError: FAISS is not installed.
    """

    def __init__(self, vectors: "ChunkVectors", kind: SearchKind) -> None:
        self._faiss = _import_faiss()
        self._numbers = vectors.numbers
        faiss, dim, count = self._faiss, vectors.dim, len(vectors)
        if kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        elif kind == "ivf-pq" and count >= MIN_IVF_VECTORS:
            lists = int(4 * np.sqrt(count))
            parts = next(m for m in (dim // 4, dim // 8, 1) if m and dim % m == 0)
            self._index = faiss.index_factory(dim, f"IVF{lists},PQ{parts}", faiss.METRIC_INNER_PRODUCT)
            sample = np.random.default_rng(0).permutation(count)[: 64 * lists]
            self._index.train(vectors.of(vectors.numbers[np.sort(sample)]))
            self._index.nprobe = max(8, lists // 16)
        else:
            self._index = faiss.IndexFlatIP(dim)
        for start in range(0, count, 65536):
            self._index.add(vectors.floats(start, start + 65536))

    def search_with_scores(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[Scored]:
        """The k nearest admitted blocks for each query `[queries, dim]`, with inner products, of IVF-PQ estimated."""
        if not len(self._numbers) or not len(queries):
            return [[] for _ in queries]
        settings = None
        if admitted is not None:
            selector = self._faiss.IDSelectorBatch(np.flatnonzero(np.isin(self._numbers, admitted)))
            settings = self._parameters(selector)
        scores, found = self._index.search(np.ascontiguousarray(queries), min(k, len(self._numbers)), params=settings)
        return [_best(self._numbers[at[at >= 0]], own[at >= 0], k) for own, at in zip(scores, found, strict=True)]

    def _parameters(self, selector: Any) -> Any:
        faiss = self._faiss
        if isinstance(self._index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(sel=selector, efSearch=128)
        if isinstance(self._index, faiss.IndexIVF):
            return faiss.SearchParametersIVF(sel=selector, nprobe=self._index.nprobe)
        return faiss.SearchParameters(sel=selector)


MIN_IVF_VECTORS = 10_000
"""Minimum number of vectors to train IVF-PQ on; below, a flat index is used."""


def _best(numbers: NDArray[np.int64], scores: NDArray[np.floating[Any]], k: int) -> Scored:
    order = np.lexsort((numbers, -scores))[:k]
    return list(zip(numbers[order].tolist(), scores[order].tolist(), strict=True))


def dense_search(vectors: "ChunkVectors", kind: SearchKind, device: torch.device | None = None) -> DenseSearch:
    """The search that the settings name.

    Exact search runs on the device if the vectors fit in its free memory, otherwise on the CPU. FAISS runs on the CPU.

    Args:
        vectors: The vectors of one snapshot.
        kind: The kind of search.
        device: Where the models run. None: the CPU.

    Raises:
        ImportError: The kind is one of FAISS, which is not installed.
    """
    if kind != "exact" and (kind != "auto" or (len(vectors) >= FAISS_FROM and _has_faiss())):
        return FaissSearch(vectors, "ivf-pq" if kind == "auto" else kind)
    if device is None or device.type == "cpu" or not len(vectors):
        return ExactSearch(vectors)
    needed, free = 2 * len(vectors) * vectors.dim, _free_bytes(device)
    if needed > DEVICE_SHARE * free:
        log.info("vectors of %d MiB do not fit on %s: they are searched on the CPU", needed >> 20, device)
        return ExactSearch(vectors)
    return DeviceSearch(vectors, device)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ImportError('FAISS is not installed: pip install "compmem[faiss]"') from error
    return faiss


def _has_faiss() -> bool:
    try:
        _import_faiss()
    except ImportError:
        return False
    return True
