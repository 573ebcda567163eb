"""The index from end to end, with an encoder without a model."""

import asyncio
import json
import threading
import time
from dataclasses import replace

import pytest
import torch

from compmem import (
    Answer,
    AnswerToken,
    Chunk,
    Document,
    IncompatibleStoreError,
    IndexConfig,
    LoopConfig,
    MemoryIndex,
    ReaderError,
    RecallConfig,
    RuntimeConfig,
    Step,
    StoreError,
)
from compmem.ingest import pipeline
from compmem.store import FolderStore
from tests.hashing import HashEncoder

LEASE = [
    Document(
        id="acme", title="Acme", text="Acme rents the Harbour Building. It makes rockets.", metadata={"year": 2024}
    ),
    Document(
        id="harbour",
        title="Harbour Building",
        text="The Harbour Building is insured by Lloyd.",
        metadata={"year": 2020},
    ),
    Document(
        id="zoo", title="Zoo", text="Animals live in the zoo. The zoo was founded in 1901.", metadata={"year": 2020}
    ),
    Document(id="weather", title="Weather", text="It rains in autumn. Snow falls in winter.", metadata={}),
]
QUESTION = "Who insures the building that Acme rents?"


@pytest.fixture(scope="module")
def config():
    return IndexConfig(encoder=HashEncoder())


def made_of_lease(config):
    index = MemoryIndex.create(None, config)
    index.add(LEASE)
    return index


@pytest.fixture(scope="module")
def index(config):
    """An index that no test changes."""
    with made_of_lease(config) as made:
        yield made


@pytest.fixture
def changing(config):
    """An index of the test's own."""
    with made_of_lease(config) as made:
        yield made


def test_recall_gathers_both_hops_and_gives_exactly_k(index):
    found = index.recall(QUESTION, k=3)
    assert {"acme", "harbour"} <= {r.chunk.document_id for r in found}
    assert len(found) == 3
    assert all(0 <= r.score <= 1 for r in found)
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert len(index.recall(QUESTION, k=50)) == 4


def test_one_pass_and_loop_take_the_same_arguments(index):
    found = index.search(QUESTION, k=2)
    assert len(found) == 2


def test_an_answer_has_sources_steps_and_text_from_the_documents(index):
    answer = index.answer(QUESTION)
    assert "Lloyd" in answer.text
    assert answer.found
    assert {s.chunk.document_id for s in answer.sources} >= {"harbour"}
    for evidence in answer.evidence:
        assert evidence.chunk.text[evidence.start : evidence.end].strip() == evidence.text
    assert answer.usage.steps == len(answer.steps) > 0


def test_a_filter_decides_what_may_be_a_candidate_at_all(index):
    found = index.recall(QUESTION, k=10, filter={"year": 2020})
    assert {r.chunk.document_id for r in found} == {"harbour", "zoo"}
    answer = index.answer(QUESTION, filter={"year": {">": 2021}})
    assert {r.chunk.document_id for s in answer.steps for r in s.recalls} <= {"acme"}
    assert index.recall(QUESTION, k=5, filter={"year": 1800}) == []


def test_nothing_admitted_means_nothing_found(index):
    answer = index.answer(QUESTION, filter={"year": 1800})
    assert not answer.found
    assert answer.sources == ()
    assert answer.stop_reason == "exhausted"


def test_adding_the_same_again_does_nothing_and_a_change_replaces(changing):
    assert changing.add(LEASE) == 0
    changed = Document(id="harbour", title="Harbour Building", text="The Harbour Building is insured by Axa.")
    assert changing.add([changed]) == 1
    assert "Axa" in changing.answer(QUESTION).text
    assert len(changing) == 4
    assert changing.get("harbour").text == changed.text


def test_delete_and_compact_keep_the_rest(changing):
    assert changing.delete(["zoo", "unknown"]) == 1
    changing.compact()
    assert changing.verify() == []
    assert {d.id for d in changing.documents()} == {"acme", "harbour", "weather"}
    assert {r.chunk.document_id for r in changing.recall(QUESTION, k=9)} == {"acme", "harbour", "weather"}


def test_an_index_opened_again_answers_the_same(tmp_path, config):
    with MemoryIndex.create(tmp_path / "a.mem", config) as index:
        index.add(LEASE)
        before = index.answer(QUESTION)
    with MemoryIndex.open(tmp_path / "a.mem", encoder=config.encoder) as index:
        after = index.answer(QUESTION)
    assert (after.text, after.working_memory) == (before.text, before.working_memory)


def test_open_or_create_makes_the_index_once_and_then_opens_it(tmp_path, config):
    (tmp_path / "a.mem").mkdir()
    with MemoryIndex.open_or_create(tmp_path / "a.mem", config) as index:
        index.add(LEASE)
    with MemoryIndex.open_or_create(tmp_path / "a.mem", config) as index:
        assert len(index.documents()) == len(LEASE)
    with pytest.raises(IncompatibleStoreError, match=r"chunk_tokens=\d+, not 99"):
        MemoryIndex.open_or_create(tmp_path / "a.mem", replace(config, chunk_tokens=99))
    with pytest.raises(IncompatibleStoreError, match="HashEncoder"):
        MemoryIndex.open_or_create(tmp_path / "a.mem")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        MemoryIndex.open_or_create(tmp_path / "other", config)


def test_opening_with_another_encoder_is_refused(tmp_path, config):
    with MemoryIndex.create(tmp_path / "a.mem", config) as index:
        index.add(LEASE)
    with pytest.raises(IncompatibleStoreError, match="HashEncoder"):
        MemoryIndex.open(tmp_path / "a.mem")
    with pytest.raises(IncompatibleStoreError, match="all-MiniLM-L6-v2"):
        MemoryIndex.open(tmp_path / "a.mem", encoder="all-MiniLM-L6-v2")
    with (
        MemoryIndex.open(tmp_path / "a.mem", encoder=HashEncoder(dim=32)) as other,
        pytest.raises(IncompatibleStoreError, match="weights"),
    ):
        other.recall(QUESTION)


def test_streaming_gives_steps_then_tokens_then_the_answer(index):
    events = list(index.stream(QUESTION))
    kinds = [type(e) for e in events]
    assert kinds == sorted(kinds, key=[Step, AnswerToken, Answer].index)
    assert "".join(e.text for e in events if isinstance(e, AnswerToken)) == events[-1].text


def test_the_async_twins_give_the_same(index):
    async def twins():
        return (
            await index.aanswer(QUESTION),
            await index.arecall(QUESTION, 3),
            [e async for e in index.astream(QUESTION)],
        )

    answer, recalls, events = asyncio.run(twins())
    assert answer.text == index.answer(QUESTION).text == events[-1].text
    assert [r.block for r in recalls] == [r.block for r in index.recall(QUESTION, 3)]


def test_eight_threads_give_the_answers_of_one(index):
    questions = [QUESTION, "Where do animals live?", "When does snow fall?"] * 2
    expected = [index.answer(q).text for q in questions]
    got = [[] for _ in range(8)]
    threads = [threading.Thread(target=lambda g=g: g.extend(index.answer(q).text for q in questions)) for g in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(g == expected for g in got)


def test_the_chat_reader_answers_through_the_same_loop(index):
    def chat(messages):
        if "Lloyd" in messages[-1]["content"] and "<update>" in json.dumps(messages):
            return "<check>yes</check><update>Lloyd insures the Harbour Building</update><next>end</next>"
        if "<update>" in json.dumps(messages):
            return "<check>yes</check><update>Acme rents the Harbour Building</update><next>continue</next>"
        return "Lloyd"

    answer = index.answer(QUESTION, RecallConfig(reader="chat"), chat=chat)
    assert answer.text == "Lloyd"
    assert answer.usage.model_calls == len(answer.steps) + 1


def test_replies_that_never_keep_to_the_format_are_told_in_the_log(index, caplog):
    answer = index.answer(QUESTION, RecallConfig(reader="chat"), chat=lambda messages: "I see.")
    assert not answer.found and answer.usage.malformed_replies == len(answer.steps) > 0
    assert "none of the model's" in caplog.text and "writer=" in caplog.text


def test_a_chat_model_that_raises_is_a_reader_error_with_the_steps(index):
    def chat(messages):
        raise TimeoutError("no reply")

    with pytest.raises(ReaderError, match="no reply"):
        index.answer(QUESTION, RecallConfig(reader="chat"), chat=chat)


def test_cancelling_an_async_answer_frees_its_thread(config):
    slow = IndexConfig(encoder=HashEncoder(seconds=0.15))
    with MemoryIndex.create(None, slow) as index:
        index.add(LEASE)

        async def cancelled():
            task = asyncio.create_task(index.aanswer(QUESTION, LoopConfig(threshold=0.0, exit_gate=False)))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancelled())
        began = time.perf_counter()
        index.add([Document(text="Another text.")])
        assert time.perf_counter() - began < 5


def test_already_split_documents_keep_their_borders(changing):
    changing.add([Document(id="split", chunks=["Lloyd was founded in 1688. ", "It began in a coffee house."])])
    assert [c.text for c in changing.chunks("split")] == ["Lloyd was founded in 1688. ", "It began in a coffee house."]
    assert changing.get("split").text == "Lloyd was founded in 1688. It began in a coffee house."


def test_a_long_document_comes_back_whole(changing):
    text = "\n\n".join(f"Paragraph {i} tells of item {i}. It is followed by another." for i in range(400))
    changing.add([Document(id="long", text=text)])
    assert changing.get("long").text == text
    assert len(changing.chunks("long")) > 10


@pytest.mark.parametrize("text", ["", "   \n\t "])
def test_an_empty_document_is_refused_and_nothing_is_lost(changing, text):
    with pytest.raises(ValueError, match="'hollow' has no text"):
        changing.add([Document(id="hollow", text=text)])
    assert len(changing.documents()) == 4


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        ([Document(id="x", text="one"), Document(id="x", text="two")], "'x' is given twice, with different content"),
        ([Document(id="x", text="one"), Document(id="x", text="one", metadata={"a": 1})], "'x' is given twice"),
        ([Document(id="x", chunks=[Chunk(text="one", context=f"by {n}")]) for n in "ab"], "'x' is given twice"),
        ([Document(id="x", text="lone \ud800 surrogate")], "'x'"),
        ([Document(id="x", text="fine", metadata={"when": object()})], "'x'"),
    ],
)
def test_bad_documents_are_named(changing, documents, message):
    with pytest.raises(ValueError, match=message):
        changing.add(documents)
    assert len(changing.documents()) == 4
    assert changing.verify() == []


def test_the_same_document_twice_is_added_once(changing):
    assert changing.add([Document(text="A text that comes twice."), Document(text="A text that comes twice.")]) == 1
    assert changing.delete([Document(text="A text that comes twice.").id]) == 1
    metadata = ({"p": 1, "q": 2}, {"q": 2, "p": 1})
    assert changing.add([Document(id="twice", text="A text.", metadata=m) for m in metadata]) == 1
    assert changing.add([Document(id="cut", chunks=[Chunk(text="A text.", start=n)]) for n in (0, 7)]) == 1


def test_chunks_are_counted_by_document(changing):
    changing.add([Document(id="two", chunks=["Lloyd was founded in 1688. ", "It began in a coffee house."])])
    assert changing.count_chunks(["two", "acme", "none"]) == {"two": 2, "acme": 1, "none": 0}


def test_chunks_with_contexts_of_their_own_come_back_with_them(changing):
    for contexts in (("page 1", "page 2"), ("by Oak", "by Oak")):
        chunks = [Chunk(text=f"Part {n}. ", context=context) for n, context in enumerate(contexts)]
        changing.add([Document(id="pages", title="Pages", chunks=chunks)])
        found = changing.get("pages")
        assert (found.text, found.title) == ("Part 0. Part 1. ", "Pages")
        assert found.context == ("by Oak" if len(set(contexts)) == 1 else "")
        assert changing.add([replace(found, metadata={"new": True})]) == 1
        assert changing.get("pages").text == found.text
        assert [c.context for c in changing.chunks("pages")] == list(contexts)[: len(changing.chunks("pages"))]


def test_chunks_with_headings_that_their_text_has_not_come_back_with_them(changing):
    table = "| Part | Price |\n| --- | --- |\n" + "".join(f"| screw {n} | {n} cents a piece |\n" for n in range(300))
    changing.add([Document(id="text", text=f"# Report\n\n## Oak ##\n\n{table}\nEnd\n===\n\nIt is old.\n")])
    assert {h for c in changing.chunks("text") for h in c.headings} == {"Report", "Oak", "| Part | Price |", "End"}
    assert changing.get("text").chunks is None
    wide = "".join("| " + " | ".join(f"cell {row} {n}" for n in range(60)) + " |\n" for row in ("head", *range(60)))
    changing.add([Document(id="wide", text=wide.replace("\n", "\n|" + " --- |" * 60 + "\n", 1))])
    assert [h for c in changing.chunks("wide") for h in c.headings], "the beginning of a long head"
    assert changing.get("wide").chunks is None
    for headings in (("Report", "Section"), ("Part",)):
        chunks = [Chunk(text=f"Part {n}. ", headings=headings, context="page") for n in range(2)]
        changing.add([Document(id="pages", title="Pages", chunks=chunks)])
        assert changing.add([replace(changing.get("pages"), title="New", metadata={"new": True})]) == 1
        assert [(c.headings, c.title) for c in changing.chunks("pages")] == [(headings, "New")] * 2


def test_bad_calls_are_named(changing, tmp_path):
    with pytest.raises(ValueError, match="k=0"):
        changing.recall(QUESTION, k=0)
    with pytest.raises(ValueError, match="empty"):
        changing.recall("  ")
    with pytest.raises(ValueError, match="characters"):
        changing.answer("why " * 25_000)
    with pytest.raises(ValueError, match="near"):
        changing.recall(QUESTION, filter={"year": {"near": 3}})
    with pytest.raises(ValueError, match="list of ids"):
        changing.delete("acme")
    for wrong in ("A text.", ["A text."], iter(["A text."])):
        with pytest.raises(TypeError, match=r"add takes documents, not str: make each one with Document\(text="):
            changing.add(wrong)
    with pytest.raises(TypeError, match=r"k= is no argument: the models are chat, reader, writer; settings go into"):
        changing.answer(QUESTION, k=2)
    for method in ("gate", "loop"):
        with pytest.raises(TypeError, match="fliter= is no argument"):
            changing.recall(QUESTION, method=method, fliter={"year": 2024})
    with pytest.raises(ValueError, match="not one document"):
        changing.add(LEASE[0])
    with pytest.raises(ValueError, match="is for reader="):
        changing.answer(QUESTION, RecallConfig(reader="latent"), chat=print)
    with pytest.raises(ValueError, match="need chat="):
        changing.answer(QUESTION, RecallConfig(reader="chat"))
    with pytest.raises(StoreError, match="missing"):
        MemoryIndex.open(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    with pytest.raises((ValueError, StoreError), match="file"):
        MemoryIndex.create(tmp_path / "file")


def test_adding_streams_and_never_holds_the_corpus(changing, monkeypatch):
    monkeypatch.setattr(pipeline, "BATCH_CHARACTERS", pipeline.BATCH_CHARACTERS // 10)
    alive = 0
    most = 0

    class Counted(str):
        def __new__(cls, text):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return super().__new__(cls, text)

        def __del__(self):
            nonlocal alive
            alive -= 1

    def documents():
        for i in range(60):
            yield Document(id=f"d{i}", text=Counted(f"Text number {i}. " * 150))

    changing.add(documents())
    assert len(changing.documents()) == 64
    assert most < 40


def test_every_search_finds_the_nearest(config):
    pytest.importorskip("faiss")
    documents = [Document(id=str(i), text=f"Item {i} weighs {i * 7} grams.") for i in range(80)]
    for search in ("exact", "flat", "hnsw", "ivf-pq", "auto"):
        with MemoryIndex.create(
            None, IndexConfig(encoder=config.encoder), runtime=RuntimeConfig(search=search)
        ) as index:
            index.add(documents)
            found = index.search("Item 13 weighs 91 grams.", k=1, method="dense")
            assert found[0].chunk.document_id == "13", search
            kept = index.search(
                "Item 13 weighs 91 grams.", k=5, method="dense", filter={"document_id": {"in": ["7", "9"]}}
            )
            assert {r.chunk.document_id for r in kept} == {"7", "9"}, search


def test_a_threshold_of_zero_visits_everything_that_was_proposed(index):
    answer = index.answer(QUESTION, LoopConfig(threshold=0.0, exit_gate=False, max_steps=None))
    assert {r.chunk.document_id for s in answer.steps for r in s.recalls} == {"acme", "harbour", "zoo", "weather"}


def test_no_gradient_is_kept(index):
    index.recall(QUESTION)
    assert all(p.grad is None for p in index.gate.parameters())
    assert torch.is_grad_enabled()


def test_chunks_may_come_from_a_generator():
    document = Document(id="a", chunks=(text for text in ("Acme rents it. ", "Lloyd insures it.")))
    assert document.text == "Acme rents it. Lloyd insures it."
    assert document.chunks == ("Acme rents it. ", "Lloyd insures it.")


async def test_recall_needs_no_model_that_only_answers_need(index):
    for config in (RecallConfig(reader="chat"), RecallConfig(writer="chat")):
        assert index.recall(QUESTION, 3, config=config) == index.recall(QUESTION, 3)
        assert await index.arecall(QUESTION, 3, config=config) == index.recall(QUESTION, 3)
        with pytest.raises(ValueError, match="need chat="):
            index.answer(QUESTION, config)


@pytest.mark.parametrize(
    "setting", [{"backbone": "embedded"}, {"ratio": 4}, {"kv_window": 64}, {"kv_pruning": "attention"}, {"kv": "int8"}]
)
def test_settings_of_kv_memory_are_refused_for_dense_memory(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))}=.* is for memory='kv'"):
        IndexConfig(**setting)


def test_dense_memory_that_was_made_with_a_kind_of_kv_states_can_be_opened(tmp_path):
    config = IndexConfig(encoder=HashEncoder())
    with MemoryIndex.create(tmp_path / "a", config) as made:
        settings = {**made.store.config, "kv": "int4"}
    assert settings["memory"] == "dense"
    FolderStore.create(tmp_path / "old", config=settings, vectors=config.vectors).close()
    for name in ("a", "old"):
        with MemoryIndex.open_or_create(tmp_path / name, config) as opened:
            assert opened.add([Document(text="Acme rents.")]) == 1
