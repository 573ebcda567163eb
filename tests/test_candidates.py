from dataclasses import replace

import numpy as np
import pytest

from compmem import Document, IndexConfig, LoopConfig, MemoryIndex
from compmem.retrieval import candidates
from compmem.retrieval.vector_search import ExactSearch
from tests.hashing import HashEncoder

TEXTS = {
    "Big Eyes": "Big Eyes is a film directed by Jane Roe.",
    "The Fall": "The Fall is a play by Jane Roe and her spouse.",
    "Oslo": "Oslo is a city of many films.",
    **{f"Page {i}": f"Page {i} is filled with the number {i}." for i in range(40)},
}


@pytest.fixture(scope="module", params=["int8", "fp16"])
def index(request):
    """An index that no test changes."""
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder(), vectors=request.param)) as made:
        made.add([Document(id=t, title=t, text=text) for t, text in TEXTS.items()])
        yield made


def titles(context, numbers):
    return [b.chunk.title for b in context.fetch(numbers)]


def test_the_exact_search_is_a_matrix_product_whatever_the_slices(index):
    with index.store.snapshot() as snapshot:
        vectors = snapshot.vectors()
        floats = vectors.floats()
        queries = HashEncoder().encode(["film by Jane Roe", "number 7", "city"])
        best = np.argsort(-(floats @ queries.T), axis=0, kind="stable")[:5].T
        expected = [[int(vectors.numbers[i]) for i in row] for row in best]
        for rows in (7, 512):
            found = ExactSearch(vectors, slice_rows=rows).search(queries, 5, None)
            assert [row[:3] for row in found] == [row[:3] for row in expected]
        admitted = vectors.numbers[::2]
        for row in ExactSearch(vectors).search(queries, 50, admitted):
            assert sorted(row) == admitted.tolist()


def test_either_ranking_grows_when_more_of_it_is_wanted(index):
    with index.question_context("page number film") as context:
        generator = context.required_generator
        generator._depth = 5
        few, many = len(generator.bm25(5)), len(generator.nearest(20))
        assert (few, many, len(generator.bm25(20))) == (5, 20, 20)


def test_signals_asked_side_by_side_are_those_asked_in_turn(index, monkeypatch):
    for memory in ("", "Big Eyes: Big Eyes is a film directed by Jane Roe."):
        with index.question_context(
            "Who is the spouse of the director of Big Eyes?", None, LoopConfig(first_stage=4)
        ) as context:
            in_turn = context.propose(memory)
            monkeypatch.setattr(candidates, "PARALLEL_FROM", 0)
            assert context.propose(memory) == in_turn
            monkeypatch.undo()


def test_whom_a_memory_line_speaks_of_is_asked_for_though_no_block_is_named_so(index):
    config = LoopConfig(first_stage=4, links=False)
    with index.question_context("Who is married to the director of Big Eyes?", None, config) as context:
        words_alone = replace(context.required_generator, dense=None)
        assert "The Fall" not in titles(context, words_alone.propose(""))
        assert "The Fall" in titles(context, words_alone.propose("Big Eyes: directed by Jane Roe."))
