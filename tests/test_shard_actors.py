"""An index asked through Ray actors with its shards: the answers of the same folder opened in one process."""

import os
import pickle
import signal
import sys
import time
from dataclasses import dataclass, replace

import pytest

from compmem import Document, IndexConfig, MemoryIndex, RecallConfig, StoreError
from compmem.retrieval import open_shards
from compmem.retrieval.open_shards import OpenShards
from compmem.store import shard_path
from tests.hashing import HashEncoder
from tests.test_shards import QUESTIONS, asked, documents, searched

pytest.importorskip("ray", reason="Ray is not installed: pip install 'compmem[ray]'")

from compmem import distributed
from compmem.shard_actors import ActorIndex, ActorStore, ShardActors, assign_shards

SHARDS = 3


@dataclass(frozen=True, slots=True)
class Processes(ShardActors):
    """The actors' own objects in this process; what travels is pickled as between processes."""

    def call_each(self, method, arguments, *, retries=0, seconds=None):
        done = {}
        for n, args in pickle.loads(pickle.dumps(arguments)).items():
            try:
                done[n] = getattr(self.handles[n], method)(*args)
            except (StoreError, ValueError) as error:
                done[n] = error
        return pickle.loads(pickle.dumps(done))


class Handle(OpenShards):
    """An actor's own object, which releases a view as an actor does."""

    def __init__(self, *args):
        super().__init__(*args)
        self.release = self

    def options(self, num_returns):
        return self

    def remote(self, view):
        OpenShards.release(self, view)


@pytest.fixture
def path(tmp_path):
    with MemoryIndex.create(tmp_path / "s", IndexConfig(encoder=HashEncoder()), shards=SHARDS) as index:
        index.add(documents())
    return tmp_path / "s"


@pytest.fixture
def local(path):
    with MemoryIndex.open(path, encoder=HashEncoder()) as index:
        yield index


def over_actors(path, local, actors=2):
    folders = [shard_path(path, n) for n in range(SHARDS)]
    handles = [Handle(part, "exact") for part in assign_shards(folders, actors)]
    started = Processes(str(path), dict(local.store.config), tuple(folders), SHARDS, tuple(handles))
    return ActorIndex.of_store(ActorStore(started), encoder=HashEncoder())


def views(index):
    return [handle.views() for handle in index.store.actors.handles]


def test_an_actor_that_fails_leaves_no_view_open_in_the_others(path, local, monkeypatch):
    index = over_actors(path, local)

    def ended():
        raise StoreError("an actor has ended")

    monkeypatch.setattr(index.store.actors.handles[1], "open", ended, raising=False)
    with pytest.raises(StoreError, match="has ended"):
        index.search("Who?")
    assert views(index) == [0, 0]


def all_of(index, question, filter):
    """Candidates, scores and the whole answer, but for the seconds."""
    scores, worded, answer = asked(index, question, filter)
    steps = tuple(replace(step, seconds=0.0) for step in answer.steps)
    return scores, worded, replace(answer, steps=steps, usage=replace(answer.usage, seconds=0.0))


def same(one, many, questions=QUESTIONS[:3]):
    """Asserts that two indexes find, score and answer the same."""
    for number, question in enumerate(questions):
        filter = {"even": True} if number % 3 == 0 else None
        assert all_of(many, question, filter) == all_of(one, question, filter)
        assert searched(many, question, filter) == searched(one, question, filter)
        for method in ("gate", "hybrid", "dense", "bm25"):
            assert many.search(question, 5, method=method) == one.search(question, 5, method=method)
    assert sorted(many.documents({"even": True}), key=str) == sorted(one.documents({"even": True}), key=str)
    for name in ("d3", "unknown"):
        assert many.get(name) == one.get(name)
        assert (many.chunks(name), many.metadata(name)) == (one.chunks(name), one.metadata(name))
    assert (len(many), many.info(), many.verify()) == (len(one), one.info(), one.verify())
    assert many.store.generation == one.store.generation


def test_answers_are_those_of_the_folder_in_one_process(path, local):
    index = over_actors(path, local)
    same(local, index)
    local.delete([f"d{n}" for n in range(0, 30, 4)])
    local.add([Document(id="new", title="Acme", text="Acme rents the Borel Hall.", metadata={"even": True})])
    same(local, index, QUESTIONS[4:6])  # a new generation is seen without anything being opened again
    assert views(index) == [0, 0]
    with pytest.raises(ValueError, match="unknown"):
        index.search("Who?", filter={"even": {"unknown": 1}})
    for change in (lambda: index.add(documents()[:1]), lambda: index.delete(["d3"]), index.compact):
        with pytest.raises(StoreError, match="only read"):
            change()


def test_a_question_makes_few_calls_whatever_the_number_of_shards(path, local):
    counts = []
    for actors in (1, 3):
        index = over_actors(path, local, actors)
        index.encoder.encode_query(["loads the encoder"])
        before = index.store.round_trips
        one = RecallConfig(threshold=0.0, max_steps=6, decompose=False)
        steps = len(index.answer(QUESTIONS[4], one).steps)
        counts.append(index.store.round_trips - before)
        assert steps == 6
    assert counts[0] == counts[1] <= 2 + 4 * steps  # opening, and which encoder it was made with


def test_a_view_stays_as_it_was_until_it_is_released(path, local):
    index = over_actors(path, local)
    with index.question_context(QUESTIONS[0]) as context:
        before = asked(local, QUESTIONS[0])[0]
        local.delete(["d1", "d2", "d3"])
        local.add([Document(id="d4", title="Acme", text="Acme moved.")])
        local.compact()
        proposed = context.propose("")
        names = [block.chunk.id for block in context.fetch(proposed)]
        assert dict(zip(names, context.score("", proposed), strict=True)) == before
        assert views(index) == [1, 1]
    assert views(index) == [0, 0]
    same(local, index, QUESTIONS[:2])


def test_views_that_nobody_releases_are_closed(path, local, monkeypatch):
    monkeypatch.setattr(open_shards, "MAX_OPEN_VIEWS", 2)
    index = over_actors(path, local)
    with index.store.snapshot() as first, index.store.snapshot() as second:
        first.document("d1")
        with index.store.snapshot() as third:
            assert views(index) == [2, 2]
            assert first.document("d1") == third.document("d1")
            assert first.document("d1").text == local.get("d1").text
            with pytest.raises(StoreError, match="ask again"):  # the longest unused
                second.document("d1")
        for handle in index.store.actors.handles:
            handle.close_idle(seconds=1000)
            assert handle.views() == 1
            handle.close_idle(seconds=0)
            assert handle.views() == 0
        with pytest.raises(StoreError, match="ask again"):
            first.document("d1")
    assert index.get("d1") == local.get("d1")


def test_a_folder_that_was_replaced_is_opened_again(path, local, tmp_path):
    index = over_actors(path, local)
    text = index.answer(QUESTIONS[5]).text
    local.copy_to(tmp_path / "copy")
    path.rename(tmp_path / "old")
    (tmp_path / "copy").rename(path)
    with pytest.raises(StoreError, match="its folder was replaced; open it again"):
        index.answer(QUESTIONS[5])
    again = ActorIndex.of_store(ActorStore(index.store.actors), encoder=HashEncoder())
    assert again.answer(QUESTIONS[5]).text == text


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("RAY_worker_niceness", "0")
        with distributed.ray_cluster("local"):
            yield


@pytest.mark.slow  # a Ray cluster takes half a minute
@pytest.mark.timeout(600)
def test_actors_of_ray_are_asked_and_started_again(cluster, path, local):
    import ray

    with pytest.raises(ValueError, match="actors=0"):
        distributed.open_index(path, actors=0)
    with pytest.raises(StoreError, match="has no index"):
        distributed.open_index(path / "none")
    with MemoryIndex.create(path.with_name("whole"), IndexConfig(encoder=HashEncoder())) as whole:
        whole.add(documents())
    with distributed.open_index(path.with_name("whole"), encoder=HashEncoder()) as index:
        assert (index.store.folders, index.store.shard_count) == ((path.with_name("whole"),), None)
        assert index.verify() == []
    with distributed.open_index(path, actors=2, encoder=HashEncoder()) as index:
        same(local, index)
        copy = pickle.loads(pickle.dumps(index))
        with pytest.raises(ValueError, match="unknown"):
            copy.search("Who?", filter={"even": {"unknown": 1}})
        handle = index.store.actors.handles[0]
        for _ in range(2):
            pid = ray.get(handle.__ray_call__.remote(lambda _: os.getpid()))
            with index.question_context(QUESTIONS[0]) as context:
                os.kill(pid, signal.SIGKILL)
                with pytest.raises(StoreError, match="ask again"):
                    context.propose("")
            same(local, index, QUESTIONS[:1])
        waited = time.monotonic() + 60
        while ray.get([h.views.remote() for h in index.store.actors.handles]) != [0, 0]:
            assert time.monotonic() < waited
    with pytest.raises(StoreError, match="has ended"):
        copy.get("d1")
