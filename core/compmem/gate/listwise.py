"""Features of each block relative to the other candidates: ranks, standard scores, margins, and list statistics.

A gate on absolute values alone does not transfer to other documents: how similar the best passage is differs between
collections. What transfers is a block's rank in its own list, for each signal, and how clearly that signal separates
the best blocks from the rest.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from compmem.gate.features import FEATURES
from compmem.retrieval.ranking import RRF_RANK_OFFSET, SearchRanks, rank_of, reciprocal
from compmem.schema import Vectors

SIGNALS = ("question_chunk", "question_sentence", "lexical", "coverage")
"""Features that are ranked within the list, besides the BM25 score of the first stage."""

_TOP = 10
"""Top blocks of each ranking whose overlap is counted."""

_RANKED = (*SIGNALS, "bm25")

STANDING_FEATURES = (
    *(f"{signal}_{kind}" for signal in _RANKED for kind in ("reciprocal", "log_rank", "standard", "margin")),
    "fused_reciprocal", "fused_log_rank", "fused_score", "dense_reciprocal_rank", "bm25_reciprocal_rank",
    *(f"list_{signal}_{kind}" for signal in _RANKED for kind in ("peak", "gap", "gap5")),
    "list_overlap", "list_bm25_of_dense", "list_dense_of_bm25", "list_sentence_of_dense", "list_size", "list_has_terms",
)  # fmt: skip
"""The features by name, in column order; those that begin with `list_` are the same for the whole list."""

OF_QUESTION = (
    "question_chunk", "question_sentence", "question_second", "lexical", "coverage", "coverage_sentence",
    "coverage_roots", "title_coverage", "title_in_question", "named_in_question", "named_in_question_weight",
    "named_in_question_capital", "named_in_question_shared", "names_question", "names_question_weight",
    "asked_spoken", "asked_spoken_weight", "asked_spoken_missed", "names_total", "length",
)  # fmt: skip
"""Features that do not depend on the working memory."""

FIRST_FEATURES = (*OF_QUESTION, *STANDING_FEATURES)
"""The gate's features of a block in the first pass, with an empty working memory."""

_LATER_RANKED = ("joint_chunk", "joint_sentence", "coverage_missing_sentence", "fresh", "spoken_weight")

LATER_FEATURES = (
    *FEATURES,
    *(f"{signal}_{kind}" for signal in _LATER_RANKED for kind in ("reciprocal", "standard", "margin")),
    "first_logit", "first_reciprocal", "first_log_rank", "first_margin", "first_seen", "first_best", "first_best_two",
)  # fmt: skip
"""The gate's features of a block in later passes: question and memory, and the score of the first pass."""

_OF_BEST = (
    "question_chunk", "question_sentence", "coverage", "coverage_sentence", "coverage_roots", "title_coverage",
    "title_in_question", "named_in_question_weight", "names_question", "names_total", "asked_spoken_missed",
)  # fmt: skip

_OF_LIST = tuple(name for name in STANDING_FEATURES if name.startswith("list_"))

QUESTION_FEATURES = (
    "logit1", "logit2", "logit3", "logit5", "logit10", "gap", "expected",
    *_OF_LIST,
    *(f"best_{name}" for name in _OF_BEST),
    *(f"second_{name}" for name in _OF_BEST),
)  # fmt: skip
"""Features of the whole question after the first pass: whether more passes help, and whether anything answers."""


def standing_features(base_features: Vectors, search_ranks: SearchRanks) -> Vectors:
    """The features of each block relative to this list of candidates, `[blocks, len(STANDING_FEATURES)]`.

    Args:
        base_features: The blocks' features under the question, `[blocks, len(FEATURES)]`.
        search_ranks: Their ranks in the searches for the question.
    """
    count = len(base_features)
    if not count:
        return np.zeros((0, len(STANDING_FEATURES)), np.float32)
    columns: list[NDArray[np.floating]] = []
    shape: list[float] = []
    ranks: dict[str, NDArray[np.int64]] = {}
    signals = {name: base_features[:, FEATURES.index(name)] for name in SIGNALS} | {"bm25": search_ranks.score}
    for name, values in signals.items():
        rank = ranks[name] = rank_of(values)
        mean, deviation = float(values.mean()), float(values.std()) + 1e-4
        best = np.sort(values)[::-1]
        columns += [
            1 / (1 + rank),
            np.log1p(rank) / 5,
            np.clip((values - mean) / deviation, -4, 8) / 3,
            np.clip((best[0] - values) / deviation, 0, 8) / 3,
        ]
        shape += [
            min((best[0] - mean) / deviation, 8) / 4,
            min((best[0] - best[min(1, count - 1)]) / deviation, 4) / 2,
            min((best[0] - best[min(4, count - 1)]) / deviation, 6) / 3,
        ]
    fused = reciprocal(search_ranks.dense, RRF_RANK_OFFSET) + reciprocal(search_ranks.bm25, RRF_RANK_OFFSET)
    rank = rank_of(fused.astype(np.float32))
    columns += [
        1 / (1 + rank),
        np.log1p(rank) / 5,
        30 * fused,
        reciprocal(search_ranks.dense),
        reciprocal(search_ranks.bm25),
    ]
    nearest, heaviest = int(ranks["question_chunk"].argmin()), int(ranks["bm25"].argmin())
    shape += [
        _overlap(ranks["question_chunk"], ranks["bm25"]),
        1 / (1 + ranks["bm25"][nearest]),
        1 / (1 + ranks["question_chunk"][heaviest]),
        1 / (1 + ranks["question_sentence"][nearest]),
        np.log1p(count) / 6,
        float(search_ranks.score.max() > 0),
    ]
    return np.column_stack([*columns, np.tile(shape, (count, 1))]).astype(np.float32)


def first_features(base_features: Vectors, search_ranks: SearchRanks) -> Vectors:
    """Features of each block in the first pass, `[blocks, len(FIRST_FEATURES)]`; see `standing_features`."""
    return np.concatenate(
        [base_features[:, _columns(OF_QUESTION)], standing_features(base_features, search_ranks)], axis=1
    )


def later_features(base_features: Vectors, first: Vectors, seen: NDArray[np.bool_], rows: NDArray[np.int64]) -> Vectors:
    """Features of a later pass, `[windows, len(LATER_FEATURES)]`.

    Args:
        base_features: Features of each window under question and memory, `[windows, len(FEATURES)]`.
        first: First-pass logits of every block of that pass, `[seen]`, then those of the blocks to score:
            `[seen + blocks]`; a block that the first pass did not see has the lowest.
        seen: Whether the first pass saw each block to score, `[blocks]`.
        rows: The block of each window, `[windows]`.
    """
    columns: list[NDArray[np.floating]] = []
    for name in _LATER_RANKED:
        values = base_features[:, FEATURES.index(name)]
        deviation = float(values.std()) + 1e-4
        columns += [
            1 / (1 + rank_of(values)),
            np.clip((values - values.mean()) / deviation, -4, 8) / 3,
            np.clip((values.max() - values) / deviation, 0, 8) / 3,
        ]
    first_logits, logits = first[: len(first) - len(seen)], first[len(first) - len(seen) :]
    falling = np.sort(first_logits)[::-1]
    rank = np.searchsorted(-falling, -logits, side="left")
    of_first = np.column_stack([
        logits / 4, 1 / (1 + rank), np.log1p(rank) / 5, (falling[0] - logits) / 4, seen,
        np.full(len(seen), falling[0] / 4), np.full(len(seen), falling[:2].sum() / 8),
    ])  # fmt: skip
    return np.concatenate([base_features, np.column_stack(columns), of_first[rows]], axis=1).astype(np.float32)


def question_features(base_features: Vectors, first: Vectors, logits: Vectors) -> Vectors:
    """Features of the whole question after the first pass, `[len(QUESTION_FEATURES)]`.

    Args:
        base_features: Features of each block's best window, `[blocks, len(FEATURES)]`, at least one block.
        first: Their first-pass features, `[blocks, len(FIRST_FEATURES)]`.
        logits: First-pass logits, `[blocks]`.
    """
    order = np.argsort(-logits, kind="stable")
    falling = logits[order]
    places = [falling[min(n, len(falling)) - 1] for n in (1, 2, 3, 5, 10)]
    of_best = [base_features[order[min(n, len(order) - 1)], _columns(_OF_BEST)] for n in (0, 1)]
    return np.concatenate([
        np.asarray(places) / 4,
        [(places[0] - places[1]) / 4, float(np.sum(1 / (1 + np.exp(-logits.astype(float))))) / 3],
        first[order[0], [FIRST_FEATURES.index(name) for name in _OF_LIST]],
        *of_best,
    ]).astype(np.float32)  # fmt: skip


def _columns(names: Sequence[str]) -> list[int]:
    return [FEATURES.index(name) for name in names]


def _overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    top = min(_TOP, len(one))
    first, second = (set(np.argsort(r, kind="stable")[:top].tolist()) for r in (one, other))
    return len(first & second) / top
