"""Dense search over the vectors of whole chunks: exact on the CPU or a GPU, or FAISS."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from compmem.config import Search
from compmem.schema import Vectors

if TYPE_CHECKING:
    from compmem.store import ChunkVectors

log = logging.getLogger(__name__)

FAISS_FROM = 200_000
"""Number of blocks from which `auto` uses FAISS if it is installed."""

DEVICE_SHARE = 0.5
"""Largest share of a device's free memory that the vectors may take."""


class DenseSearch(Protocol):
    """Nearest blocks by the vector of the whole chunk."""

    def search(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[list[int]]:
        """Numbers of the k nearest admitted blocks for each query `[queries, dim]`, nearest first."""
        ...


@dataclass(frozen=True, slots=True)
class ExactSearch:
    """Matrix products over memory-mapped vectors on the CPU, one slice at a time."""

    vectors: "ChunkVectors"
    slice_rows: int = 512

    def search(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[list[int]]:
        """Numbers of the k nearest admitted blocks for each query `[queries, dim]`, nearest first."""
        vectors = self.vectors if admitted is None else self.vectors.only(admitted)
        numbers = vectors.numbers
        if not len(numbers) or not len(queries):
            return [[] for _ in queries]
        best = torch.topk(torch.from_numpy(self._scores(vectors, queries)), min(k, len(numbers)), dim=0)
        return [[int(numbers[i]) for i in rows] for rows in best.indices.T.tolist()]

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
class ShardedSearch:
    """Searches all shards in parallel and merges the nearest blocks."""

    vectors: "Sequence[ChunkVectors]"
    searches: Sequence[DenseSearch]

    def search(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[list[int]]:
        """Numbers of the k nearest admitted blocks for each query `[queries, dim]`, nearest first."""
        if not len(queries):
            return []
        with ThreadPoolExecutor(len(self.searches)) as pool:
            parts = list(pool.map(lambda search: search.search(queries, k, admitted), self.searches))
        out = []
        for row, query in enumerate(queries):
            near: list[tuple[float, int]] = []
            for vectors, found in zip(self.vectors, parts, strict=True):
                if found[row]:
                    near += zip((-(vectors.of(found[row]) @ query)).tolist(), found[row], strict=True)
            out.append([number for _, number in sorted(near)[:k]])
        return out


class DeviceSearch:
    """Matrix products on a device that stores the vectors; a query copies only its vectors there and numbers back."""

    def __init__(self, vectors: "ChunkVectors", device: torch.device) -> None:
        self._numbers = vectors.numbers
        self._rows = torch.empty(len(vectors), vectors.dim, dtype=torch.float16, device=device)
        for start in range(0, len(vectors), 65536):
            part = vectors.floats(start, start + 65536)
            self._rows[start : start + len(part)] = torch.from_numpy(part).to(device)

    def search(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[list[int]]:
        """Numbers of the k nearest admitted blocks for each query `[queries, dim]`, nearest first."""
        places = None if admitted is None else np.flatnonzero(np.isin(self._numbers, admitted))
        count = len(self._numbers) if places is None else len(places)
        if not count or not len(queries):
            return [[] for _ in queries]
        asked = torch.from_numpy(np.ascontiguousarray(queries)).to(self._rows.device, self._rows.dtype)
        rows = self._rows if places is None else self._rows[torch.from_numpy(places).to(self._rows.device)]
        best = torch.topk(asked @ rows.T, min(k, count), dim=1).indices.cpu().numpy()
        numbers = self._numbers if places is None else self._numbers[places]
        return [[int(numbers[i]) for i in row] for row in best]


class FaissSearch:
    """A FAISS index over the vectors of one snapshot: flat, HNSW, or IVF-PQ.

    Raises:
        ImportError: FAISS is not installed.
    """

    def __init__(self, vectors: "ChunkVectors", kind: Search) -> None:
        self._faiss = _import_faiss()
        self._numbers = vectors.numbers
        faiss, dim, count = self._faiss, vectors.dim, len(vectors)
        if kind == "hnsw":
            self._index = faiss.IndexHNSWFlat(dim, 32, faiss.METRIC_INNER_PRODUCT)
        elif kind == "ivf-pq" and count >= IVF_LEAST:
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

    def search(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[list[int]]:
        """Numbers of the k nearest admitted blocks for each query `[queries, dim]`, nearest first."""
        if not len(self._numbers) or not len(queries):
            return [[] for _ in queries]
        settings = None
        if admitted is not None:
            selector = self._faiss.IDSelectorBatch(np.flatnonzero(np.isin(self._numbers, admitted)))
            settings = self._parameters(selector)
        _, found = self._index.search(np.ascontiguousarray(queries), min(k, len(self._numbers)), params=settings)
        return [[int(self._numbers[i]) for i in row if i >= 0] for row in found]

    def _parameters(self, selector: Any) -> Any:
        faiss = self._faiss
        if isinstance(self._index, faiss.IndexHNSW):
            return faiss.SearchParametersHNSW(sel=selector, efSearch=128)
        if isinstance(self._index, faiss.IndexIVF):
            return faiss.SearchParametersIVF(sel=selector, nprobe=self._index.nprobe)
        return faiss.SearchParameters(sel=selector)


IVF_LEAST = 10_000
"""Least number of vectors to train IVF-PQ on; below, a flat index is used."""


def dense_search(vectors: "ChunkVectors", kind: Search, device: torch.device | None = None) -> DenseSearch:
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
