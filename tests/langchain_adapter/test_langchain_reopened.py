"""An index of the LangChain adapter is filled from a generator, opened again and written to again."""

import logging

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding

from compmem import CorruptStoreError, IndexConfig
from langchain_compmem import CompMemReasoner, CompMemRetriever, CompMemVectorStore
from tests.frameworks_langchain import QUESTION, WORLD, HashingEncoder, make_index

REPORT = Document(
    id="report",
    page_content=" ".join(f"Sentence number {n} of the report names the mill." for n in range(120)),
    metadata={"author": "Bianca Rossi"},
)
EMBEDDINGS = DeterministicFakeEmbedding(size=16)


def stored(index):
    return {info.id: (index.get(info.id), index.count_chunks([info.id])) for info in index.documents()}


def test_documents_may_come_one_by_one(tmp_path):
    config = IndexConfig(encoder=HashingEncoder())
    retriever = CompMemRetriever.from_documents((d for d in WORLD), config=config)
    assert len(retriever.index) == len(WORLD)
    more = (Document(id=f"more {n}", page_content=f"Mill {n} is old.") for n in range(2))
    assert retriever.upsert(more)["succeeded"] == ["more 0", "more 1"]
    assert len(retriever.index) == len(WORLD) + 2
    with make_index(tmp_path / "store") as made:
        store = CompMemVectorStore(made)
        assert len(store.add_documents(d for d in WORLD)) == len(WORLD)
        named = store.add_documents((Document(page_content="An old mill.") for _ in range(1)), ids=["mill"])
        assert named == ["mill"]
    new = CompMemVectorStore.from_documents((d for d in WORLD), config=config)
    assert new.get_by_ids([d.id for d in WORLD]) == WORLD


def test_the_same_documents_change_nothing_after_a_reopening(tmp_path, caplog):
    made = CompMemRetriever.from_documents([REPORT, *WORLD], path=tmp_path / "index")
    before, generation = stored(made.index), made.index.store.generation
    made.index.close()
    again = CompMemRetriever(index=tmp_path / "index")
    with caplog.at_level(logging.WARNING, "langchain_compmem"):
        again.upsert([REPORT, *WORLD])
    assert stored(again.index) == before
    assert again.index.store.generation == generation
    assert caplog.text == ""


def test_a_vector_store_keeps_each_document_whole(tmp_path):
    with make_index(tmp_path / "index") as made:
        CompMemVectorStore(made).add_documents([REPORT])
        assert made.count_chunks(["report"]) == {"report": 1}


@pytest.mark.parametrize("fields", [{"metadata_keys": ["author"]}, {"split": False}, {}])
def test_later_documents_are_stored_as_the_first_ones(tmp_path, caplog, fields):
    made = CompMemRetriever.from_documents([REPORT, *WORLD], path=tmp_path / "index", **fields)
    before, text = stored(made.index), REPORT.page_content
    made.index.close()
    with caplog.at_level(logging.WARNING, "langchain_compmem"), CompMemRetriever.open(tmp_path / "index").own as index:
        CompMemVectorStore(index).add_documents([Document(id="note", page_content=text)])
        assert index.count_chunks(["note"]) == {"note": 1}, "a vector store keeps each document whole"
        again = CompMemRetriever(index=index)
        again.upsert([REPORT, *WORLD, REPORT.model_copy(update={"id": "copy"})])
        assert stored(index).items() >= before.items()
        assert index.count_chunks(["copy"])["copy"] == index.count_chunks(["report"])["report"]
        assert (
            index.get("copy").context
            == index.get("report").context
            == ("author: Bianca Rossi" if "metadata_keys" in fields else "")
        )
        assert caplog.text == ""


def test_other_metadata_keys_than_before_are_warned_of(tmp_path, caplog):
    with make_index(tmp_path / "index") as made:
        CompMemRetriever(index=made, metadata_keys=["author"]).upsert([REPORT, *WORLD])
        with caplog.at_level(logging.WARNING, "langchain_compmem"):
            CompMemRetriever(index=made, metadata_keys=["year"]).upsert([REPORT])
        (record,) = caplog.records
        assert "1 document(s)" in record.message and "['year']" in record.message and "['author']" in record.message


@pytest.mark.parametrize("value", [[], {"split": 1, "metadata_keys": []}, {"split": True, "metadata_keys": [1]}])
def test_wrong_settings_of_an_index_are_refused(tmp_path, value):
    with make_index(tmp_path / "index") as made:
        CompMemRetriever(index=made).upsert(WORLD)
        made.store.put_meta("langchain documents", value)
        with pytest.raises(CorruptStoreError, match="wrong value"):
            CompMemRetriever(index=made).upsert([REPORT])


def test_an_index_with_embeddings_is_opened_again(tmp_path):
    path = tmp_path / "index"
    CompMemRetriever.from_documents(WORLD, embeddings=EMBEDDINGS, path=path).index.close()
    for kind in (CompMemRetriever, CompMemReasoner):
        with pytest.raises(ValueError, match=r"CompMemRetriever\.open\(path, embeddings="):
            kind(index=path)
    retriever = CompMemRetriever.open(path, embeddings=EMBEDDINGS, k=2)
    assert len(retriever.invoke(QUESTION)) == 2
    retriever.index.close()
    store = CompMemVectorStore(path, embeddings=EMBEDDINGS)
    assert store.embeddings is EMBEDDINGS
    assert len(store.similarity_search(QUESTION, k=3)) == 3


def test_an_index_with_embeddings_and_other_settings_is_opened_again(tmp_path):
    made = CompMemVectorStore(tmp_path / "new", embeddings=EMBEDDINGS)
    assert made.embeddings is EMBEDDINGS and len(made.index) == 0
    with pytest.raises(ValueError, match="embeddings= is for the path"):
        CompMemVectorStore(made.index, embeddings=EMBEDDINGS)
    config = IndexConfig(encoder=made.index.config.encoder, chunk_tokens=64)
    CompMemVectorStore.from_texts(["A mill."], path=tmp_path / "index", config=config).index.close()
    assert CompMemVectorStore(tmp_path / "index", embeddings=EMBEDDINGS).index.config.chunk_tokens == 64


def test_without_embeddings_an_index_is_opened_as_before(tmp_path):
    CompMemRetriever.from_documents(WORLD, path=tmp_path / "index").index.close()
    assert CompMemRetriever.open(tmp_path / "index").invoke(QUESTION)
    with pytest.raises(ValueError, match="no index"):
        CompMemRetriever.open(tmp_path / "nowhere")
