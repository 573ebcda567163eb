"""Real embedded stores as the first stage: LanceDB and Qdrant, through LlamaIndex and through LangChain."""

import copy
import pickle
import zlib

import lancedb
import pytest
from langchain_community.vectorstores import LanceDB
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_qdrant import QdrantVectorStore
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.vector_stores.lancedb import LanceDBVectorStore
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaQdrant
from qdrant_client import QdrantClient, models

import langchain_compmem
import llama_index_compmem
from compmem import RecallConfig
from langchain_compmem import CompMemReasoner
from llama_index_compmem import CompMemQueryEngine
from tests.hashing import HashEncoder

QUESTION = "Who insures the building that Acme rents?"
PASSAGES = [
    ("lease", "Acme", "Acme rents the Harbour Building. The lease ends in 2031.", 2024),
    ("policy", "Harbour Building", "The Harbour Building is insured by Lloyd.", 2024),
    ("draft", "Harbour Building", "The Harbour Building was to be insured by Munich.", 2019),
    *((f"n{n}", f"Town {n}", f"The building of town {n} was rented and insured long ago.", 2024) for n in range(40)),
]
NEW = {"lease", "policy"}
LOOSE = RecallConfig(threshold=0.0, max_steps=4)


class LlamaEmbedding(BaseEmbedding):
    def _get_text_embedding(self, text):
        return HashEncoder().encode([text])[0].tolist()

    _get_query_embedding = _get_text_embedding

    async def _aget_query_embedding(self, query):
        return self._get_text_embedding(query)


class LangChainEmbedding(Embeddings):
    def embed_documents(self, texts):
        return HashEncoder().encode(texts).tolist()

    def embed_query(self, text):
        return self.embed_documents([text])[0]


def llama_store(kind, path):
    if kind == "lancedb":
        return LanceDBVectorStore(uri=str(path / "lance"), table_name="passages")
    return LlamaQdrant("passages", client=QdrantClient(path=str(path / "qdrant")))


@pytest.fixture(params=["lancedb", "qdrant"])
def llama_index_of(request, tmp_path):
    nodes = [
        TextNode(id_=name_id(name), text=text, metadata={"title": title, "name": name, "year": year})
        for name, title, text, year in PASSAGES
    ]
    storage = StorageContext.from_defaults(vector_store=llama_store(request.param, tmp_path))
    return VectorStoreIndex(nodes, storage_context=storage, embed_model=LlamaEmbedding())


def name_id(name):
    return f"00000000-0000-0000-0000-{zlib.crc32(name.encode()):012d}"


@pytest.fixture(params=["lancedb", "qdrant"])
def langchain_store(request, tmp_path):
    documents = [
        LangChainDocument(page_content=text, metadata={"title": title, "name": name, "year": year})
        for name, title, text, year in PASSAGES
    ]
    if request.param == "lancedb":
        connection = lancedb.connect(str(tmp_path / "lance"))
        store = LanceDB.from_documents(documents, LangChainEmbedding(), connection=connection)
        return store, "metadata.year = 2024"
    client = QdrantClient(":memory:")
    client.create_collection(
        "passages", vectors_config=models.VectorParams(size=HashEncoder().dim, distance=models.Distance.COSINE)
    )
    store = QdrantVectorStore(client, "passages", LangChainEmbedding())
    store.add_documents(documents)
    year = models.FieldCondition(key="metadata.year", match=models.MatchValue(value=2024))
    return store, models.Filter(must=[year])


def names(nodes):
    return [n.node.metadata["name"] for n in nodes]


def test_llama_index_retriever_and_engine(llama_index_of):
    plain = llama_index_of.as_retriever(similarity_top_k=2)
    retriever = llama_index_compmem.CompMemRetriever.from_retriever(
        plain, 3, recall_config=LOOSE, use_async=False, embed_model=HashEncoder()
    )
    found = retriever.retrieve(QUESTION)
    assert set(names(found)) >= NEW
    assert plain.similarity_top_k == 2
    stored = {
        node.id_: node for node in (n.node for n in llama_index_of.as_retriever(similarity_top_k=50).retrieve("x"))
    }
    for scored in found:
        assert scored.node.metadata == stored[scored.node.node_id].metadata
        assert scored.node.text == stored[scored.node.node_id].text
    response = CompMemQueryEngine.from_retriever(plain, recall_config=LOOSE, embed_model=HashEncoder()).query(QUESTION)
    assert "Lloyd" in str(response)
    assert set(names(response.source_nodes)) >= NEW


def test_llama_index_filters_are_the_stores_own(llama_index_of):
    year = MetadataFilters(filters=[MetadataFilter(key="year", value=2024)])
    retriever = llama_index_compmem.CompMemRetriever.from_retriever(
        llama_index_of.as_retriever(filters=year), 20, recall_config=LOOSE, embed_model=HashEncoder()
    )
    found = names(retriever.retrieve(QUESTION))
    assert set(found) >= NEW
    assert "draft" not in found
    with pytest.raises(ValueError, match="as_retriever"):
        llama_index_compmem.CompMemRetriever(retriever.memory, filters=year).retrieve(QUESTION)


async def test_llama_index_in_an_event_loop(llama_index_of):
    plain = llama_index_of.as_retriever()
    retriever = llama_index_compmem.CompMemRetriever.from_retriever(
        plain, 3, recall_config=LOOSE, use_async=False, embed_model=HashEncoder()
    )
    assert names(await retriever.aretrieve(QUESTION)) == names(retriever.retrieve(QUESTION))


def test_langchain_store_retriever_and_reasoner(langchain_store):
    store, year = langchain_store
    retriever = langchain_compmem.CompMemRetriever.from_retriever(
        store, k=20, recall_config=LOOSE, embeddings=LangChainEmbedding()
    )
    unfiltered = [d.metadata["name"] for d in retriever.invoke(QUESTION)]
    found = [d.metadata["name"] for d in retriever.invoke(QUESTION, filter=year)]
    assert "draft" in unfiltered
    assert set(found) >= NEW
    assert "draft" not in found
    handed = langchain_compmem.CompMemRetriever.from_retriever(
        store.as_retriever(search_kwargs={"filter": year}), k=20, recall_config=LOOSE, embeddings=LangChainEmbedding()
    )
    assert [d.metadata["name"] for d in handed.invoke(QUESTION)] == found
    reasoner = CompMemReasoner.from_retriever(store, recall_config=LOOSE, embeddings=LangChainEmbedding(), filter=year)
    output = reasoner.invoke(QUESTION)
    assert "Lloyd" in output["answer"]
    assert {d.metadata["name"] for d in output["context"]} >= NEW


async def test_langchain_in_an_event_loop(langchain_store):
    store, year = langchain_store
    retriever = langchain_compmem.CompMemRetriever.from_retriever(
        store, k=5, recall_config=LOOSE, embeddings=LangChainEmbedding()
    )
    awaited = await retriever.ainvoke(QUESTION, filter=year)
    assert [d.id for d in awaited] == [d.id for d in retriever.invoke(QUESTION, filter=year)]
    output = await CompMemReasoner.from_retriever(store, recall_config=LOOSE, embeddings=LangChainEmbedding()).ainvoke(
        {"question": QUESTION, "filter": year}
    )
    assert "Lloyd" in output["answer"]


class Fixed(BaseRetriever):
    """Returns fixed documents and takes no filter."""

    documents: list[LangChainDocument]

    def _get_relevant_documents(self, query, *, run_manager):
        return self.documents


def test_any_langchain_retriever_serves_but_no_filter_is_passed_over():
    document = LangChainDocument(page_content="Acme rents the pier.", metadata={"made": object()})
    retriever = langchain_compmem.CompMemRetriever.from_retriever(
        Fixed(documents=[document]), recall_config=LOOSE, embeddings=LangChainEmbedding()
    )
    assert [d.page_content for d in retriever.invoke("What does Acme rent?")] == ["Acme rents the pier."]
    with pytest.raises(ValueError, match="takes no filter"):
        retriever.invoke("What does Acme rent?", filter={"year": 2024})
    with pytest.raises(ValueError, match="store behind this retriever"):
        retriever.upsert([document])


def test_what_is_no_retriever_is_refused():
    with pytest.raises(ValueError, match="must be a BaseRetriever"):
        langchain_compmem.CompMemRetriever.from_retriever("store")
    with pytest.raises(ValueError, match="must be a BaseRetriever"):
        CompMemQueryEngine.from_retriever("store")
    assert (
        CompMemReasoner.from_retriever(
            InMemoryVectorStore(LangChainEmbedding()), embeddings=LangChainEmbedding()
        ).invoke(QUESTION)["context"]
        == []
    )


def test_what_wraps_a_retriever_is_copied_and_pickled():
    document = LangChainDocument(id="a", page_content="Acme rents the pier.")
    asked, plain = (
        "What does Acme rent?",
        VectorStoreIndex([TextNode(text="Acme rents the pier.")], embed_model=MockEmbedding(4)),
    )
    for made, ask in (
        (
            CompMemReasoner.from_retriever(Fixed(documents=[document]), embeddings=LangChainEmbedding()),
            lambda r: r.invoke(asked)["answer"],
        ),
        (
            CompMemQueryEngine.from_retriever(plain.as_retriever(), embed_model=HashEncoder()),
            lambda e: str(e.query(asked)),
        ),
    ):
        for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
            assert ask(other) == ask(made) == "Acme rents the pier."
