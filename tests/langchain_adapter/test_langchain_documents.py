"""The user's data in a document of LangChain is preserved on every path."""

import logging

import pytest
from langchain_core.documents import Document
from langchain_core.load import dumps, loads

from compmem import Document as CoreDocument
from langchain_compmem import CompMemReasoner, CompMemRetriever, CompMemVectorStore
from langchain_compmem.documents import to_core
from tests.frameworks_langchain import QUESTION, WORLD, make_index

ADDED = {"compmem_score", "compmem_title", "compmem_document_id", "compmem_start_index"}
REPORT = " ".join(f"Sentence number {n} of the report names the mill." for n in range(120))


@pytest.fixture
def index(tmp_path):
    with make_index(tmp_path / "index") as made:
        yield made


@pytest.fixture
def retriever(index):
    return CompMemRetriever(index=index, k=50)


def own(document):
    return {key: value for key, value in document.metadata.items() if key not in ADDED}


def test_keys_of_the_user_survive(retriever):
    metadata = {"score": "A+", "document_id": "case 7", "start_index": 12, "title": "The mill", "id": 3}
    retriever.upsert([Document(id="a", page_content="Tarnhill has a mill.", metadata=metadata)])
    (found,) = retriever.invoke("mill")
    assert own(found) == metadata
    assert 0 <= found.metadata["compmem_score"] <= 1
    assert retriever.invoke("mill", filter={"score": "A+", "document_id": "case 7"})[0].id == "a"
    reasoner = CompMemReasoner(index=retriever.index)
    output = reasoner.invoke("Where is the mill?")
    assert [own(document) for document in output["context"]] == [metadata]
    assert [own(document) for step in output["steps"] for document in step["context"]] == [metadata]


def test_keys_of_the_user_survive_in_every_part(index):
    retriever = CompMemRetriever(index=index, k=50, split=True)
    metadata = {"document_id": "case 7", "start_index": 12, "score": 1}
    retriever.upsert([Document(id="report", page_content=REPORT, metadata=metadata)])
    found = retriever.invoke("the mill")
    assert len(found) > 1
    assert all(own(document) == metadata for document in found)
    for document in found:
        start = document.metadata["compmem_start_index"]
        assert document.page_content == REPORT[start : start + len(document.page_content)]


@pytest.mark.parametrize("way", ["as it is", "through JSON"])
def test_writing_back_what_was_recalled_changes_nothing(retriever, way):
    retriever.upsert(WORLD)
    retriever.index.add([CoreDocument(id="core", title="Named apart", text="# Mills\n\nTarnhill has a mill.")])
    retriever.index.add([CoreDocument(id="long", text=REPORT, metadata={"year": 2024})])
    before = {info.id: (info, retriever.index.get(info.id)) for info in retriever.index.documents()}
    found = retriever.invoke(QUESTION)
    assert len(found) > len(before), "of the long document there are parts"
    if way == "through JSON":
        found = [loads(dumps(document), allowed_objects="core") for document in found]
    generation = retriever.index.store.generation
    assert retriever.upsert(found) == {"succeeded": [document.id for document in found], "failed": []}
    assert retriever.upsert(retriever.get(["core", *(d.id for d in WORLD)]))["failed"] == []
    assert {info.id: (info, retriever.index.get(info.id)) for info in retriever.index.documents()} == before
    store = CompMemVectorStore(retriever.index)
    store.add_documents(store.similarity_search(QUESTION, k=50))
    assert retriever.index.store.generation == generation, "nothing was written"


def test_an_edited_document_takes_its_edits_and_nothing_else(retriever):
    retriever.upsert([Document(id="a", page_content="Tarnhill has a mill.", metadata={"tags": ["x"], "score": 7})])
    (found,) = retriever.invoke("mill")
    found.metadata["tags"].append("y")
    assert retriever.invoke("mill")[0].metadata["tags"] == ["x"], "editing a result edits no other"
    found.page_content = "Tarnhill has two mills."
    retriever.upsert([found])
    assert retriever.get(["a"]) == [
        Document(id="a", page_content="Tarnhill has two mills.", metadata={"tags": ["x", "y"], "score": 7})
    ]
    assert not ADDED & retriever.index.get("a").metadata.keys()


def test_a_part_cannot_replace_its_document(index):
    retriever = CompMemRetriever(index=index, k=50, split=True)
    retriever.upsert([Document(id="report", page_content=REPORT)])
    for part in retriever.invoke("the mill"):
        part.page_content = "Short."
        with pytest.raises(ValueError, match=r"a part of the document 'report' .* get\(\['report'\]\)"):
            retriever.upsert([part])
    assert retriever.get(["report"])[0].page_content == REPORT


def test_a_part_may_go_into_another_index(index, tmp_path):
    retriever = CompMemRetriever(index=index, split=True)
    retriever.upsert([Document(id="report", page_content=REPORT, metadata={"year": 2024})])
    part = retriever.invoke("the mill", k=1)[0]
    with make_index(tmp_path / "other") as made:
        other = CompMemRetriever(index=made)
        other.upsert([part])
        assert other.get([part.id]) == [Document(id=part.id, page_content=part.page_content, metadata={"year": 2024})]


@pytest.mark.parametrize("blank", ["", " \n\t", "\u2003"])
async def test_a_blank_document_fails_alone(retriever, blank, caplog):
    good = Document(id="good", page_content="Tarnhill has a mill.")
    with caplog.at_level(logging.WARNING, "langchain_compmem"):
        done = await retriever.aupsert([Document(id="blank", page_content=blank), good])
    assert done == {"succeeded": ["good"], "failed": ["blank"]}
    assert "'blank'" in caplog.text
    assert retriever.get(["blank", "good"]) == [good]
    assert len(retriever.upsert([Document(page_content=blank)])["failed"]) == 1


def test_documents_of_one_file_have_it_as_their_source():
    pages = [Document(page_content=f"Page {n}.", metadata={"source": "report.pdf", "page": n}) for n in range(2)]
    assert [to_core(page, split=False).source for page in pages] == ["report.pdf", "report.pdf"]
    assert to_core(Document(page_content="Alone.", metadata={"source": 7}), split=True).source == ""


def test_the_id_of_a_part_is_known(index):
    retriever = CompMemRetriever(index=index, k=50)
    retriever.upsert([Document(id="a#1", page_content="Tarnhill has a mill.")])
    retriever.upsert([Document(id="report", page_content=REPORT, metadata={"year": 2024})])
    part = next(d for d in retriever.invoke("the mill") if "compmem_document_id" in d.metadata)
    (got,) = retriever.get([part.id])
    assert (got.id, got.page_content, own(got)) == (part.id, part.page_content, {"year": 2024})
    assert CompMemVectorStore(index).get_by_ids([part.id, "report#999", "a#2"]) == [got]
    for holder in (retriever, CompMemVectorStore(index)):
        with pytest.raises(ValueError, match=r"is a part of a document: delete it with delete\(\['report'\]\)"):
            holder.delete(["a#1", part.id])
    assert index.count_documents() == 2, "nothing was deleted"
    assert retriever.delete(["report#999", "a#1", "a#2"])["num_deleted"] == 1
    assert retriever.delete(name for name in ["report"])["num_deleted"] == 1
