"""An index over a retriever: its queries, the use of its results, and what is cached."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from compmem import Chunk, Document, ExternalIndex, IndexConfig, MemoryIndex, RecallConfig, threads
from tests.hashing import HashEncoder

QUESTION = "Who insures the building that Acme rents?"
DOCUMENTS = {
    "lease": Document(id="lease", title="Acme", chunks=["Acme rents the Harbour Building. The lease ends in 2031."]),
    "policy": Document(id="policy", title="Harbour Building", chunks=["The Harbour Building is insured by Lloyd."]),
    "zoo": Document(id="zoo", title="Zoo", chunks=["The zoo keeps lions, and a bear named Otto."]),
}


class Counting(HashEncoder):
    """Records the batches that it encoded."""

    def __init__(self):
        super().__init__()
        self.batches = []

    def encode(self, texts):
        self.batches.append(list(texts))
        return super().encode(texts)


READ_ALL = RecallConfig(threshold=0.0, max_steps=None)
FILLER = [Document(id=f"t{n}", title=f"Town {n}", chunks=[f"Town {n} has a church and a mill."]) for n in range(10)]


class Narrow:
    """A retriever that finds one document, by the last name in the query, and others without content."""

    def __init__(self):
        self.asked = []

    def __call__(self, query, k, filter):
        self.asked.append((query, filter))
        place = {"lease": query.rfind("Acme"), "policy": query.rfind("Harbour Building")}
        best = max(place, key=place.get)
        return [DOCUMENTS[best if place[best] >= 0 else "zoo"], *FILLER]


def test_the_retriever_is_asked_again_with_what_was_found():
    retriever = Narrow()
    index = ExternalIndex(retriever, encoder=HashEncoder())
    answer = index.answer(QUESTION, READ_ALL, filter={"any": "form"})
    assert {s.chunk.document_id for s in answer.sources} == {"lease", "policy"}
    assert "Lloyd" in answer.text
    asked = [query for query, _ in retriever.asked]
    assert asked[0] == QUESTION
    assert any(query.startswith(QUESTION) and "Harbour Building" in query for query in asked)
    assert "Harbour Building" in asked
    assert len(asked) == len(set(asked)), "no text is asked twice"
    assert all(filter == {"any": "form"} for _, filter in retriever.asked)


def test_what_came_before_is_not_encoded_again():
    encoder = Counting()
    index = ExternalIndex(lambda query, k, filter: list(DOCUMENTS.values()), encoder=encoder)
    once = index.search(QUESTION, 3)
    texts = [text for batch in encoder.batches for text in batch]
    encoder.batches.clear()
    again = index.search("Which bear does the zoo keep?", 3)
    assert {r.chunk.document_id for r in again} == {r.chunk.document_id for r in once} == set(DOCUMENTS)
    assert not set(texts) & {text for batch in encoder.batches for text in batch}


def test_changed_content_is_another_block():
    held = [Document(id="a", chunks=["Acme rents the pier."], metadata={"year": 2023})]
    index = ExternalIndex(lambda query, k, filter: list(held), encoder=HashEncoder())
    before = index.search("What does Acme rent?", 1)[0]
    held[0] = Document(id="a", chunks=["Acme rents the barn."], metadata={"year": 2024})
    after = index.search("What does Acme rent?", 1)[0]
    assert (before.chunk.text, after.chunk.text) == ("Acme rents the pier.", "Acme rents the barn.")
    assert after.chunk.metadata == {"year": 2024}
    assert after.block != before.block


def test_scores_do_not_depend_on_earlier_questions_and_little_is_held():
    def retrieve(query, k, filter):
        return [Document(id=f"{query}{n}", chunks=[f"Acme rents barn {n} of {query}."]) for n in range(9)]

    fresh = ExternalIndex(retrieve, encoder=HashEncoder(), cached_blocks=4)
    wanted = [(r.chunk.id, r.score) for r in fresh.search(QUESTION, 9)]
    used = ExternalIndex(retrieve, encoder=HashEncoder(), cached_blocks=4)
    for other in ("What is Otto?", "Who is Lloyd?"):
        used.search(other, 9)
    assert [(r.chunk.id, r.score) for r in used.search(QUESTION, 9)] == wanted
    assert len(used._cache._cached) == 4
    assert len(wanted) == 9


def test_it_brings_no_more_than_it_is_asked_for_and_may_bring_nothing():
    many = [Document(id=str(n), chunks=[f"Pier {n}."]) for n in range(20)]
    index = ExternalIndex(lambda query, k, filter: many, encoder=HashEncoder(), candidates=5)
    assert len(index.search("Which pier?", 20)) == 5
    nothing = ExternalIndex(lambda query, k, filter: [], encoder=HashEncoder())
    assert nothing.recall("Which pier?") == []
    assert not nothing.answer("Which pier?").found


def test_broken_and_blank_texts_are_taken_as_they_can_be():
    found = [Document(id="b", title="P\ud800r", chunks=["The pier\udfff is old."]), Document(id="c", chunks=["  "])]
    index = ExternalIndex(lambda query, k, filter: found, encoder=HashEncoder())
    (recall,) = index.search("How old is the pier?", 5)
    assert recall.chunk.text == "The pier\ufffd is old."


def test_a_broken_text_of_a_chunk_keeps_the_rest_of_it():
    chunk = Chunk(text="The pier\udfff is old.", title="Pier", headings=("Age\ud800",), metadata={"page": 3})
    index = ExternalIndex(lambda query, k, filter: [Document(id="b", chunks=[chunk])], encoder=HashEncoder())
    (recall,) = index.search("How old is the pier?", 5)
    assert (recall.chunk.text, recall.chunk.headings) == ("The pier\ufffd is old.", ("Age\ufffd",))
    assert (recall.chunk.title, recall.chunk.metadata) == ("Pier", {"page": 3})


def test_two_passages_of_one_id_are_both_read():
    passages = [
        Document(id="book", title="Lease", text="Acme rents the Harbour Building."),
        Document(id="book", title="Policy", text="The Harbour Building is insured by Lloyd."),
    ]
    for order in (passages, passages[::-1]):
        index = ExternalIndex(lambda query, k, filter, found=order: found, encoder=HashEncoder())
        answer = index.answer(QUESTION, READ_ALL)
        assert "Acme rents" in answer.text and "by Lloyd" in answer.text
        first, second = sorted(r.chunk.document_id for r in answer.sources)
        assert first == "book" and second.startswith("book:")
        assert index.recall(QUESTION, 2) == index.recall(QUESTION, 2)


def test_a_document_whose_metadata_has_a_new_score_each_time_is_one_document():
    scores = iter(range(1000))

    def retrieve(query, k, filter):
        return [
            Document(id=d.id, title=d.title, text=d.text, metadata={"score": next(scores)}) for d in DOCUMENTS.values()
        ]

    found = ExternalIndex(retrieve, encoder=HashEncoder()).recall(QUESTION, 50, config=READ_ALL)
    assert next(scores) > len(DOCUMENTS), "it is asked several times"
    assert sorted(r.chunk.document_id for r in found) == sorted(d.id for d in DOCUMENTS.values())


def test_another_heading_is_another_block():
    held = [Chunk(text="It is old.", headings=("Pier",), metadata={"page": 3})]
    index = ExternalIndex(lambda query, k, filter: [Document(id="a", chunks=list(held))], encoder=HashEncoder())
    index.search("How old is the pier?", 1)
    held[0] = Chunk(text="It is old.", headings=("Barn",), metadata={"page": 4})
    (after,) = index.search("How old is the pier?", 1)
    assert (after.chunk.headings, after.chunk.metadata) == (("Barn",), {"page": 4})


def test_no_more_chunks_are_held_than_asked_for():
    def retrieve(query, k, filter):
        return [Document(id=f"d{n}", chunks=["Acme rents a barn. "] * 3) for n in range(9)]

    index = ExternalIndex(retrieve, encoder=HashEncoder(), cached_blocks=7)
    assert len(index.search(QUESTION, 30)) == 27
    assert sum(map(len, index._cache._cached.values())) == 6
    assert ExternalIndex(retrieve, encoder=HashEncoder(), cached_blocks=2).search(QUESTION, 30)


async def test_the_retriever_is_awaited_in_the_loop_that_asks():
    loops, sync = set(), Narrow()

    async def aretrieve(query, k, filter):
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0)
        return Narrow()(query, k, filter)

    index = ExternalIndex(sync, aretrieve=aretrieve, encoder=HashEncoder())
    answer = await index.aanswer(QUESTION, READ_ALL)
    recalls = await index.arecall(QUESTION, 5, config=READ_ALL)
    assert loops == {asyncio.get_running_loop()}
    assert sync.asked == []
    assert answer.text == index.answer(QUESTION, READ_ALL).text
    assert "Lloyd" in answer.text
    assert [r.chunk.id for r in recalls] == [r.chunk.id for r in index.recall(QUESTION, 5, config=READ_ALL)]
    assert sync.asked


async def test_an_index_over_an_index_never_waits_for_its_own_threads(monkeypatch):
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as inner:
        inner.add(DOCUMENTS.values())

        async def aretrieve(query, k, filter):
            return [inner.get(r.chunk.document_id) for r in await inner.asearch(query, k)]

        outer = ExternalIndex(Narrow(), aretrieve=aretrieve, encoder=HashEncoder())
        monkeypatch.setattr(threads, "_index_pool", ThreadPoolExecutor(2))
        async with asyncio.timeout(30):
            answers = await asyncio.gather(*(outer.aanswer(QUESTION, READ_ALL) for _ in range(4)))
            recalls = await asyncio.gather(*(outer.arecall(QUESTION, 3) for _ in range(4)))
            await asyncio.gather(*(outer.asearch(QUESTION, 3) for _ in range(4)))
    assert len({answer.text for answer in answers}) == len({str(found) for found in recalls}) == 1
    assert "Lloyd" in answers[0].text


def test_the_retrievers_error_is_the_callers():
    def retrieve(query, k, filter):
        raise ConnectionError("the store is away")

    with pytest.raises(ConnectionError, match="away"):
        ExternalIndex(retrieve, encoder=HashEncoder()).recall(QUESTION)


def test_a_retriever_may_return_any_iterable_of_documents():
    index = ExternalIndex(lambda query, k, filter: (d for d in DOCUMENTS.values()), encoder=HashEncoder())
    assert {r.chunk.document_id for r in index.search(QUESTION, 3)} == set(DOCUMENTS)


@pytest.mark.parametrize(("found", "kind"), [(None, "NoneType"), (["Acme rents."], "str"), ("Acme", "str"), (5, "int")])
async def test_a_retriever_that_returns_no_documents_is_told_so(found, kind):
    async def aretrieve(query, k, filter):
        return found

    index = ExternalIndex(lambda query, k, filter: found, aretrieve=aretrieve, encoder=HashEncoder())
    with pytest.raises(TypeError, match=f"a retriever must return .*documents, not {kind}"):
        index.recall(QUESTION)
    with pytest.raises(TypeError, match=f"a retriever must return .*documents, not {kind}"):
        await index.arecall(QUESTION)


@pytest.mark.parametrize("given", [{"retrieve": "x"}, {"retrieve": None}, {"retrieve": print, "aretrieve": "x"}])
def test_a_retriever_that_cannot_be_called_is_refused(given):
    with pytest.raises(TypeError, match=r"retrieve=.* must be a function of query, k and filter"):
        ExternalIndex(**given, encoder=HashEncoder())


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"cached_blocks": 0}, {"candidates": True}])
def test_numbers_are_checked(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        ExternalIndex(lambda query, k, filter: [], **wrong)


async def test_retrievers_that_hang_take_no_thread_from_other_indexes(monkeypatch):
    monkeypatch.setattr(threads, "_index_pool", ThreadPoolExecutor(1))
    over, began = threading.Event(), threading.Event()

    def hangs(query, k, filter):
        began.set()
        over.wait(60)
        return []

    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as other:
        other.add([Document(text="Acme rents the Harbour Building.")])
        stuck = asyncio.create_task(ExternalIndex(hangs, encoder=HashEncoder()).asearch("Who?"))
        try:
            assert await asyncio.to_thread(began.wait, 60)
            async with asyncio.timeout(60):
                assert (await other.aanswer("What does Acme rent?")).found
        finally:
            over.set()
            await stuck
