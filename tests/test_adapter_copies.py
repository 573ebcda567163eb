"""Copies of the adapters' objects over a temporary index work after the original is gone."""

import copy
import gc
import pickle

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document as LlamaIndexDocument

from langchain_compmem import CompMemReasoner, CompMemRetriever, CompMemVectorStore
from llama_index_compmem import CompMemIndex

QUESTION = "Who insures the building that Acme rents?"
TEXTS = {"lease": "Acme rents the Harbour Building.", "policy": "The Harbour Building is insured by Lloyd."}


def langchain():
    return CompMemRetriever.from_documents([LangChainDocument(id=i, page_content=t) for i, t in TEXTS.items()])


def llama_index():
    return CompMemIndex.from_documents([LlamaIndexDocument(id_=i, text=t) for i, t in TEXTS.items()])


MADE = {
    "langchain retriever": (langchain, lambda made: made.invoke(QUESTION)),
    "langchain reasoner": (
        lambda: CompMemReasoner(index=langchain().index),
        lambda made: made.invoke(QUESTION)["context"],
    ),
    "langchain vector store": (
        lambda: CompMemVectorStore(langchain().index),
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
