"""One-pass search by each method, scores and their limits, and rankings."""

import numpy as np
import pytest

from compmem import Document, MemoryIndex
from compmem.config import IndexConfig, LoopConfig
from compmem.retrieval.ranking import SearchRanks, rank_of, reciprocal, reciprocal_rank_fusion
from tests.hashing import HashEncoder

TEXTS = {
    "lease": "Acme rents the Harbour Building until 2031.",
    "policy": "The Harbour Building is insured by Lloyd.",
    "zoo": "Animals live in the zoo.",
    "weather": "It rains in autumn, and snow falls in winter.",
}
QUESTION = "Who rents the Harbour Building?"


@pytest.fixture(scope="module")
def index():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        made.add([Document(id=name, text=text, metadata={"n": len(name)}) for name, text in TEXTS.items()])
        yield made


def ids(recalls):
    return [r.chunk.document_id for r in recalls]


@pytest.mark.parametrize("method", ["gate", "hybrid", "dense", "bm25"])
async def test_each_method_puts_the_passage_first_and_falls(index, method):
    found = index.search(QUESTION, method=method)
    assert ids(found)[0] == "lease"
    scores = [r.score for r in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= score <= 1 for score in scores)
    assert await index.asearch(QUESTION, method=method) == found
    assert ids(index.search(QUESTION, 1, method=method)) == ["lease"]
    assert index.search(QUESTION, method=method, min_score=scores[1] + 1e-6) == [
        r for r in found if r.score > scores[1]
    ]
    assert "lease" not in ids(index.search(QUESTION, method=method, filter={"n": {"!=": 5}}))


def test_bm25_returns_only_what_holds_a_word_and_nothing_is_padded(index):
    assert ids(index.search("zoo", 4, method="bm25")) == ["zoo"]
    assert index.search("qwertz", 4, method="bm25") == []
    assert [r.score for r in index.search(QUESTION, method="bm25", min_score=0.99)] == [1.0]


def test_a_recall_leaves_out_what_scores_lower(index):
    every = index.recall(QUESTION, 4)
    low = every[-1].score
    assert ids(index.recall(QUESTION, 4, min_score=low + 1e-6)) == [r.chunk.document_id for r in every if r.score > low]


def test_an_unknown_method_and_a_wrong_k_are_refused(index):
    with pytest.raises(ValueError, match="method='nearest' must be one of 'gate'"):
        index.search(QUESTION, method="nearest")
    with pytest.raises(ValueError, match="k=0"):
        index.search(QUESTION, 0)


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.1, "0.5", True])
@pytest.mark.parametrize("method", ["loop", "gate"])
async def test_a_score_that_is_no_share_is_refused(index, method, wrong):
    with pytest.raises(ValueError, match="min_score="):
        index.recall(QUESTION, method=method, min_score=wrong)
    with pytest.raises(ValueError, match="min_score="):
        await index.arecall(QUESTION, method=method, min_score=wrong)


def test_more_than_a_hundred_are_found():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        made.add([Document(id=str(n), text=f"Harbour number {n}.") for n in range(130)])
        for method in ("gate", "hybrid", "dense", "bm25"):
            assert len(made.search("harbour", 130, method=method)) == 130
        assert len(made.recall("which ship?", 130)) == 130, "though no word is shared"
        read = made.answer("which harbour?", LoopConfig.rag(60)).steps[0].recalls
        nearest = made.search("which harbour?", 60, method="dense")
        assert {r.chunk.id for r in read} == {r.chunk.id for r in nearest}


def test_fusion_is_one_where_all_rankings_agree_and_sums_reciprocal_ranks():
    fused = reciprocal_rank_fusion([["a", "b"], ["a", "c"]])
    assert list(fused) == ["a", "b", "c"]
    assert fused["a"] == pytest.approx(1.0)
    assert fused["b"] == pytest.approx((1 / 62) / (2 / 61))


def test_ranks_share_the_best_place_and_a_standing_tells_what_was_not_found():
    assert rank_of(np.array([0.5, 0.9, 0.5, 0.1])).tolist() == [1, 0, 1, 3]
    search_ranks = SearchRanks.from_rankings([7, 8, 9], dense=[9, 7], bm25=[(8, 3.0)])
    assert search_ranks.dense.tolist() == [2, 0, 1]
    assert search_ranks.bm25.tolist() == [0, 1, 0]
    assert search_ranks.score.tolist() == [0.0, 3.0, 0.0]
    assert reciprocal(search_ranks.dense, 60).tolist() == [1 / 62, 0.0, 1 / 61]
