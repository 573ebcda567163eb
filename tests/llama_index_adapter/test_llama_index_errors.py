"""What is refused, and what the message says: the type of what was given, and what to give instead."""

import pytest
from llama_index.core import Settings, VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import TextNode

from llama_index_compmem import CompMemChatEngine, CompMemIndex, CompMemQueryEngine, CompMemRetriever
from llama_index_compmem.llm import tell_of_unused_llm
from tests.frameworks_llama_index import QUESTION, FakeLLM, HashingEncoder, documents

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
        (lambda index, plain: CompMemChatEngine(index), "as_query_engine.*, not CompMemIndex"),
        (lambda index, plain: CompMemChatEngine(index.as_retriever()), "as_query_engine.*, not CompMemRetriever"),
        (lambda index, plain: CompMemIndex(path="kept"), "from_memory"),
        (lambda index, plain: CompMemIndex(MANY[0]), "list of documents or nodes, not one TextNode"),
        (lambda index, plain: CompMemIndex.from_documents(5), "list of documents or nodes, not one int"),
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


@pytest.mark.parametrize("splits", [None, [SentenceSplitter()]])
def test_documents_may_come_one_by_one(splits):
    made = CompMemIndex.from_documents(iter(documents()), embed_model=HashingEncoder(), transformations=splits)
    assert set(made.ref_doc_info) == {document.id_ for document in documents()}


@pytest.mark.parametrize("mode", ["best", "condense_question", "context", "condense_plus_context", "simple"])
def test_every_chat_mode_takes_verbose(index, mode):
    for verbose in (True, False):
        assert index.as_chat_engine(chat_mode=mode, llm=FakeLLM(lambda prompt: "Where?"), verbose=verbose)
    with pytest.raises(TypeError, match="verbos="):
        index.as_chat_engine(chat_mode=mode, llm=FakeLLM(), verbos=True)


async def test_a_verbose_conversation_prints_what_it_asks(index, capsys):
    for llm in (None, FakeLLM(lambda prompt: "Where was Elena Marsh born?")):
        chat = index.as_chat_engine(llm=llm, verbose=True)
        answers = [chat.chat(QUESTION), await chat.achat("Was she born there?")]
        asked = [answer.sources[0].raw_input["query"] for answer in answers]
        assert asked[0] == QUESTION and asked[1] != "Was she born there?"
        assert capsys.readouterr().out == "".join(f"Querying with: {question}\n" for question in asked)
    index.as_chat_engine().chat(QUESTION)
    assert capsys.readouterr().out == ""


def test_an_engine_says_once_that_it_does_not_call_the_llm_of_settings(index, monkeypatch, caplog):
    tell_of_unused_llm.cache_clear()
    index.as_query_engine()
    monkeypatch.setattr(Settings, "_llm", FakeLLM())
    index.as_query_engine(llm=FakeLLM())
    assert caplog.text == ""
    index.as_query_engine()
    index.as_chat_engine()
    assert caplog.text.count("llm=Settings.llm") == 1
