"""Copies of the adapters' objects over a temporary index work after the original is gone."""

import copy
import gc
import pickle

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document as LlamaIndexDocument

from compmem import IndexConfig
from langchain_compmem import CompMemReasoner, CompMemRetriever, CompMemVectorStore
from llama_index_compmem import CompMemIndex
from tests.hashing import HashEncoder

QUESTION = "Who insures the building that Acme rents?"
TEXTS = {"lease": "Acme rents the Harbour Building.", "policy": "The Harbour Building is insured by Lloyd."}


@pytest.fixture(autouse=True)
def only_new_garbage():
    """Looking for garbage takes half a second with the objects of all libraries."""
    gc.freeze()
    yield
    gc.unfreeze()


def langchain(encoder):
    documents = [LangChainDocument(id=i, page_content=t) for i, t in TEXTS.items()]
    return CompMemRetriever.from_documents(documents, config=IndexConfig(encoder=encoder))


def llama_index():
    documents = [LlamaIndexDocument(id_=i, text=t) for i, t in TEXTS.items()]
    return CompMemIndex.from_documents(documents, config=IndexConfig(encoder=HashEncoder()))


MADE = {
    "langchain retriever": (lambda: langchain(HashEncoder()), lambda made: made.invoke(QUESTION)),
    "named encoder": (lambda: langchain(IndexConfig().encoder), lambda made: made.invoke(QUESTION)),
    "langchain reasoner": (
        lambda: CompMemReasoner(index=langchain(HashEncoder()).index),
        lambda made: made.invoke(QUESTION)["context"],
    ),
    "langchain vector store": (
        lambda: CompMemVectorStore(langchain(HashEncoder()).index),
        lambda made: made.similarity_search(QUESTION),
    ),
    "llama-index retriever": (lambda: llama_index().as_retriever(), lambda made: made.retrieve(QUESTION)),
    "llama-index engine": (
        lambda: llama_index().as_query_engine(),
        lambda made: made.query(QUESTION).source_nodes,
    ),
    "llama-index vector store": (lambda: llama_index().as_vector_store(), lambda made: made.get_nodes()),
}


# Pickle of our own objects only, as frameworks do for their workers; the library never unpickles.
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
@pytest.mark.parametrize("name", MADE)
def test_a_copy_outlives_the_original(name, copied):
    make, ask = MADE[name]
    original = make()
    expected = [str(found) for found in ask(original)]
    other = copied(original)
    del original
    gc.collect()
    assert [str(found) for found in ask(other)] == expected != []
