"""The LangChain retriever against the real classes of langchain-core, langchain-classic and langgraph."""

import os
import subprocess
import sys

import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import create_retriever_tool
from pydantic import ValidationError

import langchain_compmem
from compmem import (
    IndexConfig,
    MemoryIndex,
)
from langchain_compmem import CompMemReasoner, CompMemRetriever, EmbeddingsEncoder
from tests.frameworks_langchain import QUESTION, WORLD, Recorder, ScriptedChat, make_index
from tests.langchain_world import ids


def test_what_the_package_offers():
    assert langchain_compmem.__all__ == [
        "CompMemReasoner", "CompMemRetriever", "CompMemTranslator", "CompMemVectorStore", "EmbeddingsEncoder",
        "ReasoningError", "recall_tool",
    ]  # fmt: skip


def test_importing_it_loads_no_model_library():
    heavy = {"torch", "transformers", "langchain", "faiss"}
    code = f"import sys, langchain_compmem; print(sorted({heavy} & set(sys.modules)))"
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert done.stdout.decode().strip() == "[]", done.stderr.decode()


# The retriever


def test_the_loop_finds_what_one_document_says_of_another(retriever):
    assert set(ids(retriever.invoke(QUESTION, k=2))) == {"orchid", "marsh"}
    assert ids(retriever.invoke(QUESTION, k=2, method="gate")) != []


def test_documents_come_back_as_they_were_with_a_score(retriever):
    found = retriever.invoke(QUESTION, k=5)
    scores = [d.metadata["compmem_score"] for d in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0 <= s <= 1 for s in scores)
    for document in found:
        given = next(d for d in WORLD if d.id == document.id)
        assert document.page_content == given.page_content
        assert document.metadata == {**given.metadata, "compmem_score": document.metadata["compmem_score"]}


def test_k_and_filter_reach_the_index_from_every_place(retriever):
    person = {"tags": {"contains": "person"}}
    assert len(retriever.invoke(QUESTION)) == 4
    assert len(retriever.bind(k=1).invoke(QUESTION)) == 1
    assert set(ids(retriever.invoke(QUESTION, filter=person))) == {"marsh", "veld"}
    assert set(ids(retriever.bind(filter=person).invoke(QUESTION))) == {"marsh", "veld"}
    kept = CompMemRetriever(index=retriever.index, filter={"year": {">": 1900}}, k=2)
    assert len(kept.invoke(QUESTION)) == 2
    assert ids(kept.invoke(QUESTION, filter=[{"year": {"<": 1990}}, {"title": "Elena Marsh"}])) == ["marsh"]


async def test_k_and_filter_reach_the_index_from_every_async_place(retriever):
    assert ids(await retriever.ainvoke(QUESTION, k=3, filter={"title": "Esk"}, method="gate")) == ["esk"]
    assert [len(found) for found in await retriever.abatch([QUESTION, "the river Esk"], k=3)] == [3, 3]


def test_configurable_fields(retriever):
    configurable = retriever.configurable_fields(
        k=ConfigurableField(id="k"), filter=ConfigurableField(id="filter"), method=ConfigurableField(id="method")
    )
    settings = {"configurable": {"k": 1, "filter": {"title": "Esk"}, "method": "gate"}}
    assert ids(configurable.invoke(QUESTION, settings)) == ["esk"]
    assert len(configurable.invoke(QUESTION)) == 4


def test_tracing_tells_what_searches(retriever):
    recorder = Recorder()
    retriever.with_config(tags=["mine"]).invoke(QUESTION, {"callbacks": [recorder], "metadata": {"user": 7}})
    (run,) = recorder.started.values()
    assert (run["kind"], run["name"], run["tags"]) == ("retriever", "CompMemRetriever", ["mine"])
    assert run["metadata"]["user"] == 7
    assert run["metadata"]["ls_retriever_name"] == "compmem"
    assert run["metadata"]["ls_vector_store_provider"] == "compmem"
    assert run["metadata"]["ls_embedding_model"] == "HashingEncoder"


@pytest.mark.parametrize("cleanup", ["incremental", "full"])
def test_indexing_adds_skips_replaces_and_forgets(own, cleanup):
    own.delete([d.id for d in WORLD])
    records = InMemoryRecordManager(namespace="world")
    records.create_schema()

    def run(*texts):
        documents = [Document(page_content=t, metadata={"source": "notes.txt"}) for t in texts]
        done = index(
            documents, records, own, cleanup=cleanup, source_id_key="source", key_encoder="sha256", batch_size=100
        )
        return done["num_added"], done["num_skipped"], done["num_deleted"]

    assert run("Tarnhill is a town.", "The Esk is a river.") == (2, 0, 0)
    assert run("Tarnhill is a town.", "The Esk is a river.") == (0, 2, 0)
    assert run("Tarnhill is a town.", "The Esk is a long river.") == (1, 1, 1)
    assert {d.page_content for d in own.invoke("Esk", k=9)} == {"Tarnhill is a town.", "The Esk is a long river."}
    assert own.invoke("Esk", k=1)[0].metadata["source"] == "notes.txt"


async def test_indexing_in_an_event_loop(own):
    records = InMemoryRecordManager(namespace="world")
    await records.acreate_schema()
    documents = [Document(page_content="Tarnhill has a mill.", metadata={"source": "mill"})]
    for expected in ({"num_added": 1, "num_skipped": 0}, {"num_added": 0, "num_skipped": 1}):
        done = await aindex(
            documents, records, own, cleanup="incremental", source_id_key="source", key_encoder="sha256"
        )
        assert expected.items() <= done.items()


def test_upsert_names_the_same_content_alike_and_the_last_one_counts(own):
    a = Document(page_content="The mill burned down.", metadata={"year": 1901})
    b = Document(page_content="The mill burned down.", metadata={"year": 1902})
    first, second, third = own.upsert([a, b, a])["succeeded"]
    assert first == third != second
    assert own.upsert([a])["succeeded"] == [first]
    own.upsert([Document(id="x", page_content="old"), Document(id="x", page_content="new")])
    assert [d.page_content for d in own.get(["x", "x", "nobody"])] == ["new"]


def test_a_title_comes_from_the_metadata(own):
    own.upsert(
        [
            Document(id="t", page_content="One.", metadata={"title": "The mill", "source": "/a/b.txt"}),
            Document(id="s", page_content="Two.", metadata={"source": "C:\\docs\\The forge.md"}),
            Document(id="n", page_content="Three.", metadata={"title": 7, "source": None}),
        ]
    )
    assert [own.index.get(i).title for i in "tsn"] == ["The mill", "The forge", ""]


def test_long_documents_are_split_when_asked(tmp_path):
    text = " ".join(f"Sentence number {n} of the report names the mill." for n in range(120))
    with make_index(tmp_path / "index") as made:
        retriever = CompMemRetriever(index=made, split=True, k=50)
        retriever.upsert([Document(id="report", page_content=text, metadata={"year": 2024})])
        found = sorted(retriever.invoke("the mill"), key=lambda d: d.metadata["compmem_start_index"])
        assert len(found) > 1
        assert len(set(ids(found))) == len(found)
        assert "".join(d.page_content for d in found) == text
        assert ids(found) == [f"report#{n}" for n in range(len(found))]
        assert {d.metadata["compmem_document_id"] for d in found} == {"report"}
        assert all(d.metadata["year"] == 2024 for d in found)
        assert retriever.get(["report"])[0].page_content == text


def test_what_is_no_document_is_named():
    with pytest.raises(TypeError, match="there must be a list of Documents, not of str"):
        CompMemRetriever.from_documents(["hello"])


def test_from_documents_takes_embeddings_of_langchain(tmp_path):
    embeddings = DeterministicFakeEmbedding(size=32)
    made = CompMemRetriever.from_documents(WORLD, embeddings=embeddings, path=tmp_path / "index", k=2)
    assert len(made.invoke(QUESTION)) == 2
    assert made._get_ls_params()["ls_embedding_model"] == "DeterministicFakeEmbedding"
    again = CompMemRetriever(index=MemoryIndex.open(tmp_path / "index", encoder=EmbeddingsEncoder(embeddings)), k=2)
    assert again.invoke(QUESTION) == made.invoke(QUESTION)
    with pytest.raises(ValueError, match="either embeddings or config"):
        CompMemRetriever.from_documents(WORLD, embeddings=embeddings, config=IndexConfig())


def test_in_a_retriever_tool(retriever):
    tool = create_retriever_tool(
        retriever, "world", "Looks things up.", response_format="content_and_artifact", document_separator="\n--\n"
    )
    call = {"name": "world", "args": {"query": QUESTION}, "id": "1", "type": "tool_call"}
    message = tool.invoke(call)
    assert "Elena Marsh was born in Tarnhill." in message.content
    assert [type(d) for d in message.artifact] == [Document] * 4


def test_in_chains_of_langchain_classic(retriever):
    from langchain_classic.chains import create_history_aware_retriever, create_retrieval_chain
    from langchain_classic.chains.combine_documents import create_stuff_documents_chain
    from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever

    rewrite = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "{input}")])
    aware = create_history_aware_retriever(ScriptedChat(replies=["Who is Jonas Veld?"]), retriever, rewrite)
    talk = {"input": "Who is he?", "chat_history": [HumanMessage("Who is mayor?"), AIMessage("Jonas Veld.")]}
    assert aware.invoke(talk)[0].id == "veld"

    stuff = create_stuff_documents_chain(
        ScriptedChat(replies=["A baker."]), ChatPromptTemplate.from_template("{context}\n{input}")
    )
    out = create_retrieval_chain(aware, stuff).invoke(talk)
    assert out["answer"] == "A baker."
    assert out["context"][0].id == "veld"

    class Surest(BaseDocumentCompressor):
        def compress_documents(self, documents, query, callbacks=None):
            return [max(documents, key=lambda d: d.metadata["compmem_score"])]

    squeezed = ContextualCompressionRetriever(base_compressor=Surest(), base_retriever=retriever).invoke(QUESTION)
    assert squeezed == retriever.invoke(QUESTION, k=1)
    both = EnsembleRetriever(retrievers=[retriever, retriever.bind(k=1)], weights=[0.5, 0.5])
    assert len(both.invoke(QUESTION)) == 4


# Bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (7, "must be a string or a mapping with 'question', not int"),
        (None, "not NoneType"),
        ({}, "the input has no 'question', only nothing"),
        ({"input": "x"}, "the input has no 'question', only 'input'"),
        ({"question": ["x"]}, "'question' must be a string"),
        ("  ", "the question is empty"),
        ([], "the messages have no question"),
        ({"messages": [("ai", "Hello")]}, "the messages have no question: none of them is from the user"),
        ({"messages": "hello"}, "messages must be a list of messages, not str"),
        ([3], "messages must be a list of messages: Unsupported message type"),
        ([("human", " ")], "the question is empty"),
        ({"question": "Who?", "chat_history": "hello"}, "chat_history must be a list of messages, not str"),
        (
            {"question": "Who?", "chat_history": [3]},
            "chat_history must be a list of messages: Unsupported message type",
        ),
        ({"question": "Who?", "chat_history": [{"content": "x"}]}, "chat_history must be a list of messages"),
        ({"question": "Who?", "chat_history": {"role": "x"}}, "chat_history must be a list of messages, not"),
        ({"question": "Who?", "filter": {"year": {"~": 1}}}, "unknown filter operator '~' for 'year'"),
        ({"question": "Who?", "filter": "year"}, "a filter is a mapping"),
    ],
)
async def test_inputs_that_are_none(reasoner, given, message):
    recorder = Recorder()
    with pytest.raises(ValueError, match=message):
        reasoner.invoke(given, {"callbacks": [recorder]})
    assert set(recorder.ended) == set(recorder.started)
    with pytest.raises(ValueError, match=message):
        await reasoner.ainvoke(given)
    with pytest.raises(ValueError, match=message):
        list(reasoner.stream(given))


async def test_bad_calls_of_the_retriever(own, tmp_path):
    for call, message in [
        ({"filter": {"year": {"~": 1}}}, "unknown filter operator '~'"),
        ({"k": 0}, "k=0 must be a whole number of at least 1"),
        ({"k": 1.5}, "k=1.5 must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            own.invoke(QUESTION, **call)
        with pytest.raises(ValueError, match=message):
            await own.ainvoke(QUESTION, **call)
    for given, kind in (({"input": QUESTION}, "dict"), (HumanMessage(QUESTION), "HumanMessage"), (None, "NoneType")):
        with pytest.raises(ValueError, match=f"must be the question as a string, not {kind}"):
            own.invoke(given)
        with pytest.raises(ValueError, match=f"must be the question as a string, not {kind}"):
            await own.ainvoke(given)
    with pytest.raises(TypeError, match="top_k"):
        own.invoke(QUESTION, top_k=3)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        CompMemRetriever(index=own.index, k=0)
    with pytest.raises(ValidationError, match="MemoryIndex"):
        CompMemRetriever(index=7)
    with pytest.raises(ValidationError, match="prompts must be ChatPrompts, not int"):
        CompMemReasoner(index=own.index, prompts=7)
    with pytest.raises(ValueError, match="metadata"):
        own.upsert([Document(page_content="x", metadata={"when": object()})])
    for method in (own.upsert, own.get, own.delete):
        with pytest.raises(TypeError, match="unexpected arguments"):
            method([], nonsense=1)


@pytest.mark.parametrize("kind", [CompMemRetriever, CompMemReasoner])
def test_a_missing_folder_is_a_validation_error(kind, tmp_path):
    with pytest.raises(ValidationError, match="nowhere"):
        kind(index=tmp_path / "nowhere")
    (tmp_path / "file").write_text("no index")
    with pytest.raises(ValidationError, match="file"):
        kind(index=str(tmp_path / "file"))
