"""An encoder with different methods for questions and documents is used correctly by every entry point."""

import pytest
from langchain_core.documents import Document as LangChainDocument
from langchain_core.embeddings import Embeddings
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import TextNode
from pydantic import PrivateAttr

from compmem import Document, IndexConfig, LoopConfig, MemoryIndex
from langchain_compmem import CompMemRetriever, CompMemVectorStore
from llama_index_compmem import CompMemIndex
from tests.hashing import TwoSidedEncoder

QUESTION = "Wer baute die Windmühle?"
PAGES = {
    "mill": "The windmill was built by Jan de Vries.",
    "bridge": "The bridge was opened by Ada Stone.",
    "tower": "The tower is closed on Mondays.",
}


@pytest.fixture
def encoder():
    return TwoSidedEncoder()


class LangChainSides(Embeddings):
    def __init__(self, encoder):
        self.encoder = encoder

    def embed_documents(self, texts):
        return self.encoder.encode(texts).tolist()

    def embed_query(self, text):
        return self.encoder.encode_query([text])[0].tolist()


class LlamaIndexSides(BaseEmbedding):
    _encoder: TwoSidedEncoder = PrivateAttr()

    def __init__(self, encoder):
        super().__init__()
        self._encoder = encoder

    def _get_text_embedding(self, text):
        return self._encoder.encode([text])[0].tolist()

    def _get_query_embedding(self, query):
        return self._encoder.encode_query([query])[0].tolist()

    async def _aget_query_embedding(self, query):
        return self._get_query_embedding(query)


def check(encoder):
    assert QUESTION in encoder.questions
    assert all(text.startswith(QUESTION) for text in encoder.questions)
    assert not any(QUESTION in text for text in encoder.texts)
    assert all(any(page in text for text in encoder.texts) for page in PAGES.values())


def test_of_an_index(encoder):
    with MemoryIndex.create(None, IndexConfig(encoder=encoder)) as index:
        index.add(Document(id=name, text=text) for name, text in PAGES.items())
        assert index.search(QUESTION, 1, method="dense")[0].chunk.document_id == "mill"
        index.answer(QUESTION, config=LoopConfig(gate="similarity", threshold=0.0, max_steps=3))
    check(encoder)
    assert any(len(text) > len(QUESTION) for text in encoder.questions), "questions with a line of working memory"


def test_of_an_object_that_names_both_sides(encoder):
    class Named:
        encode = None
        encode_document = encoder.encode
        encode_query = encoder.encode_query

    with MemoryIndex.create(None, IndexConfig(encoder=Named())) as index:
        index.add(Document(id=name, text=text) for name, text in PAGES.items())
        assert index.search(QUESTION, 1, method="dense")[0].chunk.document_id == "mill"
    check(encoder)


def test_of_langchain(encoder):
    documents = [LangChainDocument(id=name, page_content=text) for name, text in PAGES.items()]
    made = CompMemRetriever.from_documents(
        documents, embeddings=LangChainSides(encoder), k=1, method="dense"
    )  # fmt: skip
    assert made.invoke(QUESTION)[0].id == "mill"
    store = CompMemVectorStore(made.index, method="dense")
    assert store.max_marginal_relevance_search(QUESTION, k=1, lambda_mult=1)[0].id == "mill"
    check(encoder)


def test_of_llama_index(encoder):
    nodes = [TextNode(id_=name, text=text) for name, text in PAGES.items()]
    made = CompMemIndex.from_nodes(nodes, embed_model=LlamaIndexSides(encoder))
    assert made.as_retriever(1, method="dense").retrieve(QUESTION)[0].node_id == "mill"
    check(encoder)
