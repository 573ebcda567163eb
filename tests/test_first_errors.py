"""Beginners' mistakes raise errors that name them."""

import pytest
from llama_index.core import Document as LlamaIndexDocument
from pydantic import ValidationError

from compmem import Document, IndexConfig, MemoryIndex
from langchain_compmem import CompMemReasoner, CompMemRetriever
from llama_index_compmem import CompMemIndex
from tests.hashing import HashEncoder


@pytest.fixture(scope="module")
def index():
    made = MemoryIndex.create(None, IndexConfig(encoder=HashEncoder()))
    made.add([Document(id="a", text="Acme rents the Harbour Building.")])
    return made


def test_a_model_in_the_place_of_the_settings(index):
    with pytest.raises(TypeError, match="chat="):
        index.answer("Who rents?", lambda messages: "Acme")


@pytest.mark.parametrize(("role", "method"), [("reader", "read"), ("writer", "write")])
def test_a_chat_model_as_reader_or_writer(index, role, method):
    with pytest.raises(
        TypeError, match=rf"{role}= takes an object with {method}\(\), or .*, not function: .* as chat="
    ):
        index.answer("Who rents?", **{role: lambda messages: "Acme"})


@pytest.mark.parametrize("adapter", [CompMemRetriever, CompMemReasoner])
def test_a_misspelt_filter_does_not_admit_everything(index, adapter):
    with pytest.raises(ValidationError, match="filters"):
        adapter(index=index, filters={"tenant": "acme"})


def test_a_callable_in_the_place_of_an_llm():
    config = IndexConfig(encoder=HashEncoder())
    made = CompMemIndex.from_documents([LlamaIndexDocument(text="Acme rents.")], config=config)
    for engine in (made.as_query_engine, made.as_chat_engine):
        with pytest.raises(ValueError, match="a callable goes to chat="):
            engine(llm=lambda messages: "Acme")


@pytest.mark.parametrize("question", [None, 5, {"question": "Who?"}, b"Who?"])
def test_a_question_of_another_type(index, question):
    for ask in (index.answer, index.recall):
        with pytest.raises(TypeError, match=f"must be a string, not {type(question).__name__}"):
            ask(question)


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"id": 5, "text": "a"}, "id must be a string, not int"), ({"text": b"a"}, "text must be a string, not bytes")],
)
def test_a_document_with_a_field_of_another_type(index, fields, named):
    with pytest.raises(TypeError, match=named):
        index.add([Document(id="fine", text="Bolt rents."), Document(**{"id": "b", **fields})])
    assert len(index) == 1
