"""Changed first passes for cases that are rare in the sources: small lists, no answer, a weak search."""

import numpy as np
from numpy.typing import NDArray

from compmem.gate import FEATURES
from compmem.retrieval.ranking import SearchRanks, rank_of
from compmem_research.training.dense_gate.states import State

_BY_WORDS = [FEATURES.index(name) for name in (
    "lexical", "coverage", "coverage_sentence", "coverage_roots", "title_coverage", "title_in_question",
    "named_in_question", "named_in_question_weight", "named_in_question_capital", "named_in_question_shared",
    "names_question", "names_question_weight", "asked_spoken", "asked_spoken_weight",
)]  # fmt: skip
_BY_VECTORS = [FEATURES.index(name) for name in ("question_chunk", "question_sentence", "question_second")]
_FEW = 8
_NO_WORDS = 0.35
"""How often the search by words finds nothing, instead of being weakened."""
_DEPTH = 100


def without_relevant(first_pass: State) -> State | None:
    """The pass without relevant blocks; None if that changes nothing or leaves nothing."""
    keep = first_pass.relevant == 0
    return None if keep.all() or not keep.any() else restrict_to(first_pass, keep)


def of_few(first_pass: State, rng: np.random.Generator, *, answered: bool) -> State | None:
    """The pass as in an index of a few documents; None if none are left.

    Args:
        first_pass: A first pass.
        rng: Chooses the remaining blocks.
        answered: Keep the relevant blocks.
    """
    others = np.flatnonzero(first_pass.relevant == 0)
    keep = (first_pass.relevant > 0) & answered
    count = int(rng.integers(0 if keep.any() else 1, _FEW))
    keep[rng.choice(others, min(count, len(others)), replace=False)] = True
    if not keep.any():
        return None
    return _all_found(restrict_to(first_pass, keep))


def later_of_few(first_pass: State, later: State, rng: np.random.Generator) -> tuple[State, State]:
    """A first pass and a later one over the relevant blocks and a few others of both."""
    ids = np.intersect1d(first_pass.blocks[first_pass.relevant == 0], later.blocks[later.relevant == 0])
    kept = rng.choice(ids, min(int(rng.integers(1, _FEW)), len(ids)), replace=False)
    few, late = (
        restrict_to(state, (state.relevant > 0) | np.isin(state.blocks, kept)) for state in (first_pass, later)
    )
    return _all_found(few), late


def restrict_to(first_pass: State, keep: NDArray[np.bool_]) -> State:
    """The pass over some of the blocks, with their ranks recomputed."""
    rows, ranks = keep[first_pass.rows], first_pass.search_ranks
    renumbered = np.cumsum(keep) - 1
    search_ranks = SearchRanks(_moved_up(ranks.dense, keep), _moved_up(ranks.bm25, keep), ranks.score[keep])
    return State(
        first_pass.own[rows],
        renumbered[first_pass.rows[rows]],
        first_pass.blocks[keep],
        first_pass.relevant[keep],
        search_ranks,
    )


def weakened(first_pass: State, rng: np.random.Generator) -> State:
    """The pass with the vector or word features of a window mixed with those of others."""
    own, other = first_pass.own.copy(), first_pass.own[rng.permutation(len(first_pass.own))]
    share = rng.uniform(0.3, 1.0)
    if rng.random() < 0.5:
        mix = own[:, _BY_VECTORS] * (1 - 0.7 * share) + other[:, _BY_VECTORS] * (0.7 * share)
        own[:, _BY_VECTORS] = mix
        return State(own, first_pass.rows, first_pass.blocks, first_pass.relevant, _dense_from(first_pass, own))
    score = first_pass.search_ranks.score.copy()
    if rng.random() < _NO_WORDS:
        own[:, _BY_WORDS] = 0
        score[:] = 0
    else:
        windows, blocks = rng.random(len(own)) < share, rng.random(len(score)) < share
        by_words = np.array(_BY_WORDS)
        own[np.ix_(windows, by_words)] = other[np.ix_(windows, by_words)]
        score[blocks] = score[rng.permutation(len(score))][blocks]
    bm25 = np.where(score > 0, rank_of(score) + 1, 0)
    return State(
        own,
        first_pass.rows,
        first_pass.blocks,
        first_pass.relevant,
        SearchRanks(first_pass.search_ranks.dense, bm25, score),
    )


def _all_found(few: State) -> State:
    """The pass over a few blocks, all of which are among the nearest."""
    return State(few.own, few.rows, few.blocks, few.relevant, _dense_from(few, few.own))


def _dense_from(first_pass: State, own: NDArray[np.float32]) -> SearchRanks:
    """Its search ranks, recomputed from the vectors of these features."""
    rank = rank_of(np.maximum.reduceat(own[:, _BY_VECTORS[0]], first_pass.starts)) + 1
    return SearchRanks(np.where(rank <= _DEPTH, rank, 0), first_pass.search_ranks.bm25, first_pass.search_ranks.score)


def _moved_up(ranks: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.int64]:
    gone = np.sort(ranks[(ranks > 0) & ~keep])
    return np.where(ranks > 0, ranks - np.searchsorted(gone, ranks), 0)[keep]
