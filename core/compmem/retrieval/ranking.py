"""Rankings of blocks: fusion, and the ranks of blocks in several rankings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from compmem.schema import Vectors

RRF_RANK_OFFSET: Final = 60
"""Rank offset of reciprocal-rank fusion (Cormack et al. 2009)."""


@dataclass(frozen=True, slots=True)
class SearchRanks:
    """Ranks of blocks in the searches for the question alone, `[blocks]` each."""

    dense: NDArray[np.int64]
    """Rank by the chunk's vector, from 1; 0 if the search did not return the block."""
    bm25: NDArray[np.int64]
    """Rank by BM25, from 1; 0 if the search did not return the block."""
    score: Vectors
    """BM25 score; 0 if the search did not return the block."""

    @classmethod
    def from_rankings(
        cls, blocks: Sequence[int], dense: Sequence[int], bm25: Sequence[tuple[int, float]]
    ) -> "SearchRanks":
        """The ranks of these blocks in two rankings, best first."""
        near = {n: rank for rank, n in enumerate(dense, 1)}
        worded = {n: (rank, score) for rank, (n, score) in enumerate(bm25, 1)}
        found = [worded.get(n, (0, 0.0)) for n in blocks]
        return cls(
            np.array([near.get(n, 0) for n in blocks], dtype=np.int64),
            np.array([rank for rank, _ in found], dtype=np.int64),
            np.array([score for _, score in found], dtype=np.float32),
        )

    def take(self, rows: NDArray[np.int64]) -> "SearchRanks":
        """The ranks of these blocks, in this order; a block may occur more than once."""
        return SearchRanks(self.dense[rows], self.bm25[rows], self.score[rows])


def reciprocal_rank_fusion(rankings: Sequence[Sequence[int]]) -> dict[int, float]:
    """The score of each number by reciprocal-rank fusion, best first, in [0, 1]: 1 if it is first in every ranking."""
    scores: dict[int, float] = {}
    best = len(rankings) / (RRF_RANK_OFFSET + 1)
    for ranking in rankings:
        for rank, number in enumerate(ranking, 1):
            scores[number] = scores.get(number, 0.0) + 1 / (RRF_RANK_OFFSET + rank) / best
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def rank_of(values: Vectors) -> NDArray[np.int64]:
    """Rank of each value from 0, the highest first; equal values get the best of their ranks."""
    _, place, count = np.unique(-values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.int64] = (np.cumsum(count) - count)[place]
    return ranks


def reciprocal(rank: NDArray[np.int64], offset: int = 0) -> NDArray[np.float64]:
    """`1 / (offset + rank)` of ranks from 1; 0 for rank 0."""
    return np.where(rank > 0, 1 / np.maximum(offset + rank, 1), 0.0)
