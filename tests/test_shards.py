"""A folder of shards: the same answers as one folder of the same documents."""

import json
import pickle
import random
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from compmem import CorruptStoreError, Document, IncompatibleStoreError, IndexConfig, LoopConfig, MemoryIndex
from compmem.store import ShardedStore, shard_of, shard_path, sum_infos
from tests.hashing import HashEncoder

NAMES = (
    "Acme Borel Cobalt Dunmore Estrel Farrow Galen Hollin Ivers Jutland Kestrel Lomond Merrin Norvik Ostend Palmer "
    "Quarry Rivel Severn Tamar Ulster Verdun Wessex Yarrow"
).split()
WORK = "rents insures owns audits supplies advises".split()


def documents():
    rng = random.Random(0)
    made = []
    for number in range(60):
        first, second, third = rng.sample(NAMES, 3)
        aside = " ".join(rng.choice("abcdefgh") * rng.randint(3, 9) for _ in range(number % 60))
        text = f"{first} {rng.choice(WORK)} the {second} Hall. In {1900 + number} it was sold to {third}. And {aside}."
        made.append(Document(id=f"d{number}", title=f"{first} {number}", text=text, metadata={"even": number % 2 == 0}))
    return made


QUESTIONS = [
    f"Who {work} the {name} Hall, and to whom was it sold?" for work, name in zip(WORK * 2, NAMES[::2], strict=True)
]

FEW_STEPS = LoopConfig(max_steps=5)


def in_one_folder():
    index = MemoryIndex.create(None, IndexConfig(encoder=HashEncoder()))
    index.add(documents())
    return index


@pytest.fixture(scope="module")
def whole():
    """One folder that is only read."""
    with in_one_folder() as made:
        yield made


@pytest.fixture(scope="module")
def expected(whole):
    """Each question with its filter, and what the one folder gives for it."""
    filters = [{"even": True} if number % 3 == 0 else None for number in range(len(QUESTIONS))]
    return [(q, filter, asked(whole, q, filter)) for q, filter in zip(QUESTIONS, filters, strict=True)]


def sharded(path, shards):
    index = MemoryIndex.create(path, IndexConfig(encoder=HashEncoder()), shards=shards)
    index.add(documents())
    return index


def asked(index, question, filter=None):
    """Candidates and their gate scores by chunk, the BM25 scores, and the answer."""
    with index.question_context(question, filter) as context:
        proposed = context.propose("")
        scores = context.score("", proposed)
        names = {n: b.chunk.id for n, b in zip(proposed, context.fetch(proposed), strict=True)}
        worded = {names[n]: s for n, s in context.required_generator.bm25(20) if n in names}
    answer = index.answer(question, FEW_STEPS, filter=filter)
    return dict(zip(names.values(), scores, strict=True)), worded, answer


@pytest.mark.parametrize("shards", [1, 3, pytest.param(8, marks=pytest.mark.slow)])
def test_shards_give_the_candidates_scores_and_answers_of_one_folder(tmp_path, expected, shards):
    with sharded(tmp_path / "s", shards) as parted:
        for question, filter, (one, one_worded, one_answer) in expected:
            many, many_worded, many_answer = asked(parted, question, filter)
            assert set(one) == set(many)
            assert [one[c] for c in one] == pytest.approx([many[c] for c in one], abs=1e-4)
            assert one_worded == pytest.approx({c: many_worded[c] for c in one_worded}, abs=1e-4)
            assert many_answer.text == one_answer.text
            assert {s.chunk.id for s in many_answer.sources} == {s.chunk.id for s in one_answer.sources}


ALIKE = [f"{name} rents the Hall." for name in NAMES[:4]] + ["Acme rents the Hall of Borel."]


def alike(count):
    """Documents of few texts, so that nearly all scores are equal and more answer to a name than are proposed."""
    rng = random.Random(1)
    texts = [rng.choice(ALIKE) for _ in range(count)]
    return [Document(id=f"d{n}", title=f"Page {n}", text=text, metadata={"n": n}) for n, text in enumerate(texts)]


def searched(index, question, filter=None):
    """What each search and the gate found, by document, in order."""
    with index.question_context(question, filter, LoopConfig(first_stage=12)) as context:
        proposed = [context.propose(memory) for memory in ("", "Page 7: Acme rents the Hall of Borel.")]
        found = [*proposed, context.required_generator.nearest(30), [n for n, _ in context.required_generator.bm25(30)]]
        names = {n: b.chunk.document_id for row in found for n, b in zip(row, context.fetch(row), strict=True)}
        scores = context.score("", proposed[0])
    return [[names[n] for n in row] for row in found], scores


def with_equal_scores(path=None, shards=None):
    index = MemoryIndex.create(path, IndexConfig(encoder=HashEncoder()), shards=shards)
    index.add(alike(300))
    index.delete([f"d{n}" for n in range(0, 300, 3)])
    index.add(alike(40))  # some come back, behind the others
    index.compact()
    return index


@pytest.fixture(scope="module")
def equally_scored():
    """Questions with their filters, and what one folder finds and answers."""
    questions = ("Who rents the Hall?", "Which page says that Acme rents the Hall of Borel?")
    asked = [(question, filter) for question in questions for filter in (None, {"n": {"<": 150}})]
    with with_equal_scores() as one:
        return [(q, filter, searched(one, q, filter), one.answer(q, filter=filter).text) for q, filter in asked]


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_equal_scores_are_cut_and_ordered_as_in_one_folder(tmp_path, equally_scored, shards):
    with with_equal_scores(tmp_path / "s", shards) as many:
        for question, filter, (found, scores), text in equally_scored:
            assert len(found[3]) == 30
            assert searched(many, question, filter) == (found, pytest.approx(scores, abs=1e-4))
            assert many.answer(question, filter=filter).text == text


def test_documents_are_replaced_deleted_listed_and_checked_over_all_shards(tmp_path):
    with sharded(tmp_path / "s", 4) as parted, in_one_folder() as whole:
        assert parted.add(documents()) == 0
        for index in (whole, parted):
            assert index.add([Document(id="d3", title="Acme", text="Acme rents nothing.")]) == 1
            assert index.delete([f"d{n}" for n in range(0, 30, 2)] + ["unknown"]) == 15
        assert parted.get("d3").text == "Acme rents nothing."
        assert parted.get("d2") is None
        assert (parted.metadata("d2"), parted.metadata("d4"), parted.metadata("d5")) == (None, None, {"even": False})
        assert whole.metadata("d5") == {"even": False} and whole.metadata("d4") is None
        assert {d.id for d in parted.documents()} == {d.id for d in whole.documents()}
        assert (parted.info().documents, parted.info().blocks) == (whole.info().documents, whole.info().blocks)
        assert parted.verify() == []
        with parted.question_context(QUESTIONS[0]) as context:
            before = len(context.snapshot)
            parted.delete(["d41"])  # a running question keeps its snapshot
            assert len(context.snapshot) == before
            assert context.fetch(context.propose(""))
        parted.compact()
        parted.copy_to(tmp_path / "copy")
        expected, remaining = parted.answer(QUESTIONS[5], FEW_STEPS).text, len(whole) - 1
    for path in (tmp_path / "s", tmp_path / "copy"):
        with MemoryIndex.open(path, encoder=HashEncoder()) as again:
            assert len(again) == remaining
            assert again.answer(QUESTIONS[5], FEW_STEPS).text == expected
            ids = [d.id for d in again.documents()]
            for number, store in enumerate(again.store.shards):
                assert set(store.hashes(ids)) == {i for i in ids if shard_of(i, 4) == number}


@pytest.mark.parametrize("filter", [None, {"even": True}, {"even": "no such value"}])
def test_pages_of_documents_are_the_whole_list_in_parts(tmp_path, whole, filter):
    with sharded(tmp_path / "s", 4) as parted:
        for index in (whole, parted):
            listed = index.documents(filter)
            assert index.count_documents(filter) == len(listed)
            for size in (1, 7, 1000):
                pages = [index.documents(filter, offset=at, limit=size) for at in range(0, len(listed), size)]
                assert [info for page in pages for info in page] == listed
            assert index.documents(filter, offset=3) == listed[3:]
            assert index.documents(filter, offset=len(listed)) == index.documents(filter, limit=0) == []
            for wrong in ({"offset": -1}, {"limit": -1}, {"limit": 1.5}):
                with pytest.raises(ValueError, match="whole number of at least 0"):
                    index.documents(filter, **wrong)


def test_numbers_of_blocks_lie_in_their_shards_and_come_back(tmp_path):
    with sharded(tmp_path / "s", 5) as parted, parted.store.snapshot() as snapshot:
        numbers = snapshot.select(None)
        assert np.all(np.diff(numbers) > 0)
        assert [c.document_id for c in snapshot.chunks(numbers)] == [
            b.chunk.document_id for b in snapshot.blocks(numbers)
        ]
        for d in documents():
            assert [c.document_id for c in snapshot.chunks(snapshot.document_blocks(d.id))] == [d.id]


def test_verify_lists_the_problems_of_a_shard_that_cannot_be_read(tmp_path):
    sharded(tmp_path / "s", 2).close()
    with closing(sqlite3.connect(shard_path(tmp_path / "s", 1) / "manifest.sqlite")) as manifest, manifest:
        manifest.execute("UPDATE documents SET metadata = 'not json'")
    with ShardedStore.open(tmp_path / "s") as store:
        problems = store.verify()
    assert problems and all(problem.startswith("shard 1: ") for problem in problems)


def test_a_folder_of_shards_that_is_damaged_is_refused(tmp_path):
    sharded(tmp_path / "s", 2).close()
    with MemoryIndex.open(shard_path(tmp_path / "s", 0), encoder=HashEncoder()) as one, one.store.writing():
        stray = Document(id=next(f"x{n}" for n in range(99) if shard_of(f"x{n}", 2) == 1), text="A stray.")
        one.add([stray])
    with ShardedStore.open(tmp_path / "s") as store:
        assert [stray.id in problem for problem in store.verify()] == [True]
    for held in (b"{", b"[]", json.dumps({"shards": 0}).encode(), b'{"shards": true}', b"[" * 5000):
        (tmp_path / "s" / "shards.json").write_bytes(held)
        with pytest.raises(CorruptStoreError, match=r"shards\.json"):
            MemoryIndex.open(tmp_path / "s", encoder=HashEncoder())
    (tmp_path / "s" / "shards.json").write_text('{"shards": 2}')
    shard_path(tmp_path / "s", 1).rename(tmp_path / "elsewhere")
    shard_path(tmp_path / "s", 1).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CorruptStoreError, match="link"):
        MemoryIndex.open(tmp_path / "s", encoder=HashEncoder())
    for wrong in (0, 1000, True):
        with pytest.raises(ValueError, match="shards"):
            MemoryIndex.create(tmp_path / "w", shards=wrong)


def test_the_list_of_shards_may_be_no_link(tmp_path):
    MemoryIndex.create(tmp_path / "s", IndexConfig(encoder=HashEncoder()), shards=2).close()
    (tmp_path / "elsewhere.json").write_text('{"shards": 2}')
    (tmp_path / "s" / "shards.json").unlink()
    (tmp_path / "s" / "shards.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(CorruptStoreError):
        MemoryIndex.open(tmp_path / "s", encoder=HashEncoder())


def test_shards_stay_the_same_when_the_working_folder_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    MemoryIndex.create("s", IndexConfig(encoder=HashEncoder()), shards=2).close()
    index = MemoryIndex.open("s", encoder=HashEncoder())
    monkeypatch.chdir("/")
    index.add([Document(id="a", text="Acme rents the Harbour Building.")])
    assert index.path == tmp_path / "s"
    assert len(pickle.loads(pickle.dumps(index))) == len(index) == 1


def test_shards_whose_making_was_killed_are_made_again(tmp_path):
    config = IndexConfig(encoder=HashEncoder())
    MemoryIndex.create(tmp_path / "s", config, shards=2).close()
    (tmp_path / "s" / "shards.json").unlink()  # which is written last
    with MemoryIndex.create(tmp_path / "s", config, shards=3) as made:
        made.add(documents()[:5])
        assert len(made.documents()) == 5
    (tmp_path / "s" / "shards.json").unlink()
    with pytest.raises(ValueError, match="has an index already"):
        MemoryIndex.create(tmp_path / "s", config, shards=3)


def test_bytes_of_kv_states_are_counted_over_all_shards(tmp_path):
    with sharded(tmp_path / "m", 2) as index:
        one = index.store.shards[0].info()
    empty = replace(one, kv_bytes=0, kv_bytes_per_token=None)
    parts = [replace(one, kv_bytes=300, kv_bytes_per_token=30.0), replace(one, kv_bytes=100, kv_bytes_per_token=5.0)]
    assert sum_infos([empty, *parts]).kv_bytes_per_token == pytest.approx(400 / 30, abs=0.01)
    assert sum_infos([empty, empty]).kv_bytes_per_token is None


def test_an_existing_index_must_have_as_many_shards(tmp_path):
    config = IndexConfig(encoder=HashEncoder())
    sharded(tmp_path / "m", 2).close()
    with MemoryIndex.open_or_create(tmp_path / "m", config, shards=2) as index:
        assert len(index.documents()) == 60
    with pytest.raises(IncompatibleStoreError, match="was made with shards=2, not 3"):
        MemoryIndex.open_or_create(tmp_path / "m", config, shards=3)
    MemoryIndex.create(tmp_path / "whole", config).close()
    with pytest.raises(IncompatibleStoreError, match="was made with shards=None, not 2"):
        MemoryIndex.open_or_create(tmp_path / "whole", config, shards=2)


def test_settings_can_be_compared_with_an_index_that_stays_open(tmp_path):
    with sharded(tmp_path / "m", 2) as index:
        with pytest.raises(IncompatibleStoreError, match="was made with shards=2, not 3"):
            index.check_made_with({}, shards=3)
        assert len(index.documents()) == 60


def test_an_index_that_cannot_be_opened_is_closed(tmp_path, monkeypatch):
    sharded(tmp_path / "m", 2).close()
    closed = []
    monkeypatch.setattr(ShardedStore, "close", lambda store: closed.append(store.path))
    with pytest.raises(IncompatibleStoreError, match="open it with encoder="):
        MemoryIndex.open(tmp_path / "m")
    with pytest.raises(IncompatibleStoreError, match="was made with shards=2, not 3"):
        MemoryIndex.open_or_create(tmp_path / "m", IndexConfig(encoder=HashEncoder()), shards=3)
    assert closed == [tmp_path / "m"] * 2
