"""What is refused, and what the message says: the type of what was given, and what to give instead."""

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import TextNode

from llama_index_compmem import CompMemChatEngine, CompMemQueryEngine, CompMemRetriever
from tests.frameworks_llama_index import FakeLLM, HashingEncoder

MANY = [TextNode(text=f"Item {n} is here.") for n in range(300)]


@pytest.mark.parametrize(
    ("make", "hint"),
    [
        (lambda index, plain: CompMemQueryEngine.from_retriever(plain.vector_store), "as_retriever"),
        (lambda index, plain: CompMemRetriever.from_retriever(plain), "BaseRetriever .* not VectorStoreIndex"),
        (lambda index, plain: CompMemQueryEngine(plain.vector_store), "not SimpleVectorStore: .* from_retriever"),
        (lambda index, plain: CompMemRetriever(MANY), "not list: .*from_documents"),
        (lambda index, plain: CompMemQueryEngine(index, llm=plain.vector_store), "LLM .* not SimpleVectorStore"),
        (lambda index, plain: CompMemRetriever(index, filters=MANY), "MetadataFilter, not list"),
        (lambda index, plain: index.as_chat_engine(chat_history=MANY), "list of ChatMessage"),
        (lambda index, plain: index.as_query_engine(FakeLLM(), prompts={"system": MANY}), "PromptTemplate, not list"),
        (lambda index, plain: CompMemChatEngine(index.as_query_engine(), condense_prompt=MANY), "text, not list"),
        (lambda index, plain: index.as_chat_engine(system_prompt=MANY), "text, not list"),
    ],
)
def test_a_wrong_object_is_named_by_its_type(index, make, hint):
    plain = VectorStoreIndex(MANY, embed_model=MockEmbedding(4))
    with pytest.raises((ValueError, TypeError), match=hint) as raised:
        make(index, plain)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize("engine", [CompMemQueryEngine, CompMemRetriever])
def test_the_loop_is_not_put_around_itself(index, engine):
    own = VectorStoreIndex.from_vector_store(index.as_vector_store(), embed_model=MockEmbedding(1))
    for retriever in (index.as_retriever(), own.as_retriever()):
        with pytest.raises(ValueError, match="already asks a CompMem index: give that index itself"):
            engine.from_retriever(retriever, embed_model=HashingEncoder())
