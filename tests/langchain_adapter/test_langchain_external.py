"""Retrievers and stores that the LangChain adapter wraps, and those that it refuses."""

import pytest
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import ConfigurableField, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from langchain_compmem import CompMemReasoner, CompMemRetriever, CompMemVectorStore, EmbeddingsEncoder
from tests.frameworks_langchain import QUESTION, WORLD, HashingEncoder
from tests.langchain_adapter.test_langchain_tracing import Hashed


class Numbered(BaseRetriever):
    """Returns its first k documents."""

    documents: list[Document]
    k: int = 1

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents[: self.k]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_the_number_of_candidates_reaches_a_retriever_with_k(way):
    inner = Numbered(documents=WORLD)
    retriever = CompMemRetriever.from_retriever(inner, embeddings=Hashed(), k=4)
    found = retriever.invoke(QUESTION) if way == "invoke" else await retriever.ainvoke(QUESTION)
    assert len(found) == 4
    assert inner.k == 1, "the caller's retriever is not changed"


@pytest.mark.parametrize("kind", [CompMemReasoner, CompMemRetriever])
def test_an_index_of_compmem_is_not_wrapped(own, kind):
    store = CompMemVectorStore(own.index)
    for given in (own, store, store.as_retriever()):
        with pytest.raises(ValueError, match=r"give that as index="):
            kind.from_retriever(given)


def test_messages_name_the_type_and_show_no_documents(own):
    for given in (WORLD, object()):
        with pytest.raises(ValueError, match=f"folder, not {type(given).__name__}") as caught:
            CompMemRetriever(index=given)
        assert "Orchid" not in str(caught.value).split("[type=")[0]
    for given in (own, CompMemVectorStore(own.index)):
        with pytest.raises(ValueError, match=r": give its \.index"):
            CompMemReasoner(index=given)

    with pytest.raises(ValueError, match="a VectorStore, not list"):
        CompMemReasoner.from_retriever(WORLD)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_retriever_with_a_config_retries_or_fallbacks_is_wrapped(way, own):
    plain = Numbered(documents=WORLD, k=4)
    for inner in (
        plain.with_config(tags=["mine"]),
        plain.with_retry(),
        plain.with_fallbacks([plain]).with_config(tags=["mine"]),
        plain.configurable_alternatives(ConfigurableField(id="which"), made=lambda: plain),
        RunnableLambda(lambda question: WORLD[:4]),
    ):
        retriever = CompMemRetriever.from_retriever(inner, embeddings=Hashed(), k=4)
        found = retriever.invoke(QUESTION) if way == "invoke" else await retriever.ainvoke(QUESTION)
        assert len(found) == 4
        with pytest.raises(ValueError, match="takes no filter"):
            retriever.invoke(QUESTION, filter={"year": 2024})
    with pytest.raises(ValueError, match=r"give that as index="):
        CompMemReasoner.from_retriever(own.with_retry())


@pytest.mark.parametrize("found", ["text", ["text"]])
def test_what_returns_no_documents_is_named(found):
    retriever = CompMemRetriever.from_retriever(RunnableLambda(lambda question: found), embeddings=Hashed())
    with pytest.raises(TypeError, match="must return documents, not str"):
        retriever.invoke(QUESTION)


def test_a_store_of_others_is_still_wrapped():
    store = InMemoryVectorStore(Hashed())
    store.add_documents(WORLD)
    for given in (store, store.as_retriever()):
        assert CompMemRetriever.from_retriever(given, embeddings=Hashed()).invoke(QUESTION)
    assert EmbeddingsEncoder(Hashed()).encode(["a"]).shape == HashingEncoder().encode(["a"]).shape


class Store(InMemoryVectorStore):
    """Remembers what it was asked for; its filters are equal values."""

    def __init__(self):
        super().__init__(Hashed())
        self.asked = []

    def similarity_search(self, query, k=4, filter=None, **kwargs):
        self.asked.append((k, filter))
        admits = None if filter is None else lambda found: filter.items() <= found.metadata.items()
        return super().similarity_search(query, k=k, filter=admits, **kwargs)


WRAPS = {
    "plain": lambda one: one,
    "config": lambda one: one.with_config(tags=["mine"]),
    "retries": lambda one: one.with_retry(),
    "fallbacks": lambda one: one.with_fallbacks([one]).with_config(tags=["mine"]),
}


@pytest.mark.parametrize("wrap", WRAPS)
def test_the_number_of_candidates_reaches_what_is_wrapped(wrap):
    store = Store()
    store.add_documents(WORLD)
    fields = {"embeddings": Hashed(), "candidates": 30}
    CompMemRetriever.from_retriever(WRAPS[wrap](store.as_retriever()), **fields).invoke(QUESTION)
    assert store.asked[0] == (30, None) and min(k for k, _ in store.asked) > 4
    assert len(CompMemRetriever.from_retriever(WRAPS[wrap](Numbered(documents=WORLD)), **fields).invoke(QUESTION)) == 4


@pytest.mark.parametrize("wrap", WRAPS)
def test_a_question_does_not_replace_the_filter_of_what_is_wrapped(wrap):
    store = Store()
    store.add_documents([Document(text, metadata={"tenant": text[0]}) for text in ("a rents it.", "b rents it.")])
    bound = {"tenant": "a"}
    for inner in (
        WRAPS[wrap](store.as_retriever(search_kwargs={"filter": bound})),
        WRAPS[wrap](store.as_retriever().bind(filter=bound)),
    ):
        reasoner = CompMemReasoner.from_retriever(inner, embeddings=Hashed())
        with pytest.raises(ValueError, match="a filter is set already"):
            reasoner.invoke({"question": "Who rents it?", "filter": {"n": 3}})
        for filter in (None, {}):
            found = reasoner.invoke({"question": "Who rents it?", "filter": filter})
            assert {document.metadata["tenant"] for document in found["context"]} == {"a"}


def test_metadata_keys_are_no_string():
    with pytest.raises(ValueError, match=r"such as \['author'\]"):
        CompMemReasoner.from_retriever(Numbered(documents=WORLD), metadata_keys="author")
