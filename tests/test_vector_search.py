"""Dense search on a device: vectors are copied there once, not with every question."""

import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from compmem.retrieval import vector_search
from compmem.retrieval.vector_search import DeviceSearch, ExactSearch, NewestSearch, dense_search


class Vectors:
    """Unit vectors of blocks, as a snapshot gives them; counts how often they are read."""

    def __init__(self, rows=2000, dim=32, seed=0):
        values = np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)
        self.values = values / np.linalg.norm(values, axis=1, keepdims=True)
        self.numbers = np.arange(10, 10 + rows)
        self.dim, self.reads = dim, 0

    def __len__(self):
        return len(self.values)

    def floats(self, start, stop):
        self.reads += 1
        return self.values[start:stop]

    def stored(self, start, stop):
        return self.floats(start, stop), None

    def of(self, blocks):
        return self.values[np.searchsorted(self.numbers, blocks)]

    def only(self, blocks):
        kept = Vectors(1, self.dim)
        chosen = np.isin(self.numbers, blocks)
        kept.values, kept.numbers = self.values[chosen], self.numbers[chosen]
        return kept


def agrees(device):
    vectors = Vectors()
    queries = Vectors(5, seed=1).values
    search = DeviceSearch(vectors, device)
    admitted = vectors.numbers[::7]
    for allowed in (None, admitted, np.array([], np.int64)):
        found = search.search(queries, 10, allowed)
        exact = ExactSearch(vectors).search(queries, 10, allowed)
        assert [len(row) for row in found] == [len(row) for row in exact]
        for row, expected, query in zip(found, exact, queries, strict=True):
            scores = [[float(vectors.values[n - 10] @ query) for n in numbers] for numbers in (row, expected)]
            np.testing.assert_allclose(scores[0], scores[1], atol=2e-3)  # 16 bits: near ties may change places
            assert allowed is None or set(row) <= set(allowed.tolist())
    return search, vectors, queries


def test_a_question_reads_no_vector_that_is_on_the_device():
    search, vectors, queries = agrees(torch.device("cpu"))
    before = vectors.reads
    search.search(queries, 10, None)
    search.search(queries, 10, vectors.numbers[:50])
    assert vectors.reads == before


def test_vectors_that_do_not_fit_are_searched_on_the_cpu(monkeypatch, caplog):
    made = []
    monkeypatch.setattr(vector_search, "DeviceSearch", lambda vectors, device: made.append(device) or "device")
    vectors, device = Vectors(), torch.device("cuda")
    needed = 2 * len(vectors) * vectors.dim
    monkeypatch.setattr(vector_search, "_free_bytes", lambda device: 2 * needed)
    assert dense_search(vectors, "exact", device) == "device"
    monkeypatch.setattr(vector_search, "_free_bytes", lambda device: 2 * needed - 1)
    with caplog.at_level(logging.INFO):
        assert isinstance(dense_search(vectors, "exact", device), ExactSearch)
    assert len(made) == len(caplog.records) == 1
    assert isinstance(dense_search(vectors, "auto", torch.device("cpu")), ExactSearch)


@pytest.mark.gpu
def test_a_gpu_finds_what_the_cpu_does():
    search, vectors, _ = agrees(torch.device("cuda"))
    assert search._rows.is_cuda
    assert isinstance(dense_search(vectors, "exact", torch.device("cuda")), DeviceSearch)


class Built:
    """Counts what is built, and holds a build until it is let go."""

    def __init__(self):
        self.made, self.go = [], threading.Event()
        self.go.set()

    def of(self, newest, generation):
        def build():
            self.made.append(generation)
            assert self.go.wait(20)
            return f"search {generation}"

        return newest.of(generation, build, lambda: "exact")


def test_a_search_is_built_once_a_generation_and_not_for_older_ones():
    newest, built = NewestSearch(), Built()
    assert [built.of(newest, g) for g in (3, 3, 5, 3, 5)] == ["search 3", "search 3", "search 5", "exact", "search 5"]
    assert built.made == [3, 5]


@contextmanager
def being_built(newest, built):
    """Another thread builds the search of generation 1 until the end."""
    built.go.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(built.of, newest, 1)
        while not built.made:
            time.sleep(0.001)
        yield
        built.go.set()
        assert first.result(20) == "search 1"


def test_who_asks_while_a_search_is_built_does_not_wait():
    newest, built = NewestSearch(), Built()
    with being_built(newest, built):
        assert built.of(newest, 1) == "exact"
    assert built.of(newest, 1) == "search 1"
    assert built.made == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_is_forked_while_a_search_is_built_builds_its_own():
    newest, built = NewestSearch(), Built()
    with being_built(newest, built):
        child = os.fork()
        if child == 0:
            found = ""
            try:
                found = newest.of(1, lambda: "search 1", lambda: "exact")
            finally:
                os._exit(0 if found == "search 1" else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_search_that_cannot_be_built_is_tried_again():
    newest = NewestSearch()
    with pytest.raises(ImportError):
        newest.of(1, _missing, lambda: "exact")
    assert newest.of(1, lambda: "search", lambda: "exact") == "search"


def _missing():
    raise ImportError("FAISS")
