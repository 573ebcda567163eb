"""The LangChain adapter against the real classes of langchain-core, langchain-classic and langgraph."""

import asyncio
import copy
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypedDict

import pytest
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.exceptions import LangChainException
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from langchain_core.runnables.utils import AddableDict
from langchain_core.tools import create_retriever_tool
from pydantic import BaseModel, ValidationError

import langchain_compmem
from compmem import (
    ChatPrompts,
    ChatReader,
    IndexConfig,
    LoopConfig,
    MemoryIndex,
    ReaderError,
    RecallConfig,
    RuntimeConfig,
    Step,
)
from compmem import Document as CoreDocument
from langchain_compmem import CompMemReasoner, CompMemRetriever, EmbeddingsEncoder, ReasoningError
from tests.frameworks_langchain import QUESTION, UPDATE, WORLD, HashingEncoder, Recorder, ScriptedChat, make_index
from tests.replies import keep_short

STEP_1 = UPDATE.format(notes="Elena Marsh invented the Orchid device.", next="continue")
STEP_2 = UPDATE.format(notes="Elena Marsh invented it; she was born in Tarnhill.", next="end")
READ_ALL = LoopConfig(gate="off", blocks_per_step=2)
"""No gate, so that a scripted model decides when the loop ends."""


@contextmanager
def world(folder):
    with make_index(folder / "index") as made:
        CompMemRetriever(index=made).upsert(WORLD)
        yield made


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """An index that no test changes."""
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture
def retriever(unchanged):
    return CompMemRetriever(index=unchanged)


@pytest.fixture
def own(tmp_path):
    """A retriever over an index of the test's own, to be changed or with an encoder that waits."""
    with world(tmp_path) as made:
        yield CompMemRetriever(index=made)


@pytest.fixture
def reasoner(retriever):
    return CompMemReasoner(index=retriever.index)


def ids(documents):
    return [document.id for document in documents]


def chatting(retriever, *replies, **fields):
    replies = replies or (STEP_1, STEP_2, "In Tarnhill.")
    return CompMemReasoner(
        index=retriever.index,
        chat_model=ScriptedChat(replies=list(replies)),
        recall_config=READ_ALL.replace(reader="chat"),
        **fields,
    )


async def ask(reasoner, way, config):
    if way == "invoke":
        reasoner.invoke(QUESTION, config)
    elif way == "stream":
        assert list(reasoner.stream(QUESTION, config))
    elif way == "ainvoke":
        await reasoner.ainvoke(QUESTION, config)
    else:
        assert [part async for part in reasoner.astream(QUESTION, config)]


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


# The reasoner


def test_the_answer_quotes_over_two_hops(reasoner):
    output = reasoner.invoke(QUESTION)
    assert "born in Tarnhill" in output["answer"]
    assert set(ids(output["context"])) == {"orchid", "marsh"}
    assert all(0 <= d.metadata["compmem_score"] <= 1 for d in output["context"])
    assert [s["number"] for s in output["steps"]] == list(range(1, len(output["steps"]) + 1))
    assert output["working_memory"] == output["steps"][-1]["working_memory"]
    assert output["usage"]["steps"] == len(output["steps"])
    assert output["usage"]["model_calls"] == 0
    assert set(output) == {"answer", "found", "context", "working_memory", "steps", "usage", "stop_reason"}
    assert (output["found"], output["stop_reason"]) == (True, "exhausted")


def _same(one, other):
    def timeless(output):
        steps = [{k: v for k, v in s.items() if k != "seconds"} for s in output["steps"]]
        usage = {k: v for k, v in output["usage"].items() if k != "seconds"}
        return {**output, "steps": steps, "usage": usage}

    return timeless(one) == timeless(other)


async def test_every_way_of_asking_gives_the_same(reasoner):
    expected = reasoner.invoke(QUESTION)
    streamed = list(reasoner.stream({"question": QUESTION}))
    astreamed = [part async for part in reasoner.astream({"question": QUESTION, "chat_history": []})]
    for parts in (streamed, astreamed):
        assert all(isinstance(part, AddableDict) for part in parts)
        kinds = [("steps" if "steps" in p and "answer" not in p else "answer") for p in parts]
        assert kinds == sorted(kinds, reverse=True), "steps come before the answer"
        assert len(parts) > 3
        total = sum(parts[1:], parts[0])
        assert _same({**total, "answer": total["answer"].strip()}, expected)
    assert _same(await reasoner.ainvoke(QUESTION), expected)
    assert all(_same(output, expected) for output in reasoner.batch([QUESTION] * 3, {"max_concurrency": 2}))
    assert all(_same(output, expected) for output in await reasoner.abatch([QUESTION] * 3))


async def test_a_chat_model_reads_notes_and_answers(retriever):
    for mode in ("sync", "async"):
        reasoner = chatting(retriever)
        output = reasoner.invoke(QUESTION) if mode == "sync" else await reasoner.ainvoke(QUESTION)
        assert output["answer"] == "In Tarnhill."
        assert output["working_memory"] == "Elena Marsh invented it; she was born in Tarnhill."
        assert [s["exit"] for s in output["steps"]] == [False, True]
        assert output["usage"]["model_calls"] == 3
        assert output["usage"]["prompt_tokens"] > 0
    reasoner = chatting(retriever)
    parts = list(reasoner.stream(QUESTION))
    assert [p["answer"] for p in parts if p.get("answer")] == ["In ", "Tarnhill."]
    reasoner = chatting(retriever)
    assert [p["answer"] async for p in reasoner.astream(QUESTION) if p.get("answer")] == ["In ", "Tarnhill."]


def test_tokens_are_those_that_the_model_counted(retriever):
    def reply(text, tokens):
        usage = {"input_tokens": tokens, "output_tokens": 1, "total_tokens": tokens + 1}
        return AIMessage(content=text, usage_metadata=usage)

    usage = chatting(retriever, reply(STEP_2, 100), reply("In Tarnhill.", 10)).invoke(QUESTION)["usage"]
    assert (usage["model_calls"], usage["prompt_tokens"], usage["completion_tokens"]) == (2, 110, 2)


def test_a_follow_up_question_is_made_standalone_first(retriever):
    history = [
        ("human", "Who invented the Orchid device?"),
        {"role": "assistant", "content": "Dr Elena Marsh."},
        SystemMessage("not for the model to see"),
    ]
    reasoner = chatting(retriever, "Where was Elena Marsh born?", STEP_2, "In Tarnhill.")
    recorder = Recorder()
    output = reasoner.invoke({"question": "Where was she born?", "chat_history": history}, {"callbacks": [recorder]})
    asked = reasoner.chat_model.asked
    assert [m.type for m in asked[0]] == ["system", "human", "ai", "human"]
    assert "Where was Elena Marsh born?" in asked[1][-1].content
    assert "Where was she born?" not in asked[1][-1].content
    assert output["answer"] == "In Tarnhill."
    assert output["usage"]["model_calls"] == 3
    assert ("chain", "standalone question", "CompMemReasoner") in recorder.tree()
    assert chatting(retriever, "", STEP_2, "Here.").invoke({"question": QUESTION, "chat_history": history})["answer"]


async def test_a_follow_up_question_in_an_event_loop(retriever):
    reasoner = chatting(retriever, "Where was Elena Marsh born?", STEP_2, "In Tarnhill.")
    await reasoner.ainvoke({"question": "Where was she born?", "chat_history": [HumanMessage("Who is Marsh?")]})
    assert "Where was Elena Marsh born?" in reasoner.chat_model.asked[1][-1].content


def test_history_changes_nothing_where_the_question_is_complete(reasoner):
    history = [HumanMessage("Hello"), AIMessage("Hi")]
    assert _same(reasoner.invoke({"question": QUESTION, "chat_history": history}), reasoner.invoke(QUESTION))


def test_filters_of_field_and_input(retriever):
    reasoner = CompMemReasoner(index=retriever.index, filter={"title": "Esk"})
    read = {i for s in reasoner.invoke(QUESTION)["steps"] for i in ids(s["context"])}
    assert read <= {"esk"}
    wanted = {"question": QUESTION, "filter": {"title": {"in": ["Orchid device", "Elena Marsh"]}}}
    assert reasoner.invoke(wanted)["context"] == []
    assert set(ids(CompMemReasoner(index=retriever.index).invoke(wanted)["context"])) == {"orchid", "marsh"}


def test_prompts_are_the_callers(retriever):
    prompts = ChatPrompts(system="You speak like a pirate.")
    condense = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "Again: {question}")])
    reasoner = chatting(retriever, "What?", STEP_2, "Arr.", prompts=prompts, condense_prompt=condense)
    reasoner.invoke({"question": "Where?", "chat_history": [HumanMessage("Ahoy")]})
    assert reasoner.chat_model.asked[0][-1].content == "Again: Where?"
    assert reasoner.chat_model.asked[1][0].content == "You speak like a pirate."
    for wrong in ("Again: {question} {history}", "Again: {chat_history}"):
        with pytest.raises(ValueError, match="variables question and chat_history alone"):
            chatting(retriever, condense_prompt=PromptTemplate.from_template(wrong))


async def test_a_chat_model_that_writes_is_asked_once(retriever):
    chat = ScriptedChat(replies=["Tarnhill."])
    settings = RecallConfig(writer_blocks=3)
    reasoner = CompMemReasoner(index=retriever.index, chat_model=chat, recall_config=settings)
    recorder = Recorder()
    output = reasoner.invoke(QUESTION, {"callbacks": [recorder]})
    assert (output["answer"], output["usage"]["model_calls"], len(chat.asked)) == ("Tarnhill.", 1, 1)
    assert len(output["context"]) == 3 and {"orchid", "marsh"} < set(ids(output["context"]))
    assert "born in Tarnhill" in chat.asked[0][-1].content
    runs = [name for _, name, _ in recorder.tree()]
    assert runs.count("reading") == len(output["steps"]) and runs.count("answer") == 1
    assert _same(await reasoner.ainvoke(QUESTION), output)


async def test_a_chat_model_asks_back_and_cites(own):
    replies = ["SEARCH: where Elena Marsh was born", "Tarnhill [1]."]
    settings = RecallConfig(writer_blocks=2, rounds=1)
    for mode in ("sync", "async"):
        chat = ScriptedChat(replies=list(replies))
        reasoner = CompMemReasoner(index=own.index, chat_model=chat, recall_config=settings)
        output = reasoner.invoke(QUESTION) if mode == "sync" else await reasoner.ainvoke(QUESTION)
        assert output["answer"] == "Tarnhill [1]."
        assert (output["usage"]["rounds"], output["usage"]["model_calls"]) == (1, 2)
        cited = [document.metadata.get("compmem_cited", False) for document in output["context"]]
        assert cited[0] and not any(cited[1:])
        assert own.upsert(output["context"])["failed"] == []
    assert not any("compmem_cited" in d.metadata for d in own.invoke(QUESTION))


def test_another_reader_reads_and_the_chat_model_only_makes_questions_standalone(retriever):
    class Parrot:
        def read(self, question, memory, blocks):
            from compmem import Reading, WorkingMemory

            return Reading(memory=WorkingMemory(text=question), update=True, exit=True)

        async def aread(self, question, memory, blocks):
            return self.read(question, memory, blocks)

        def write(self, question, memory):
            yield memory.text

        async def awrite(self, question, memory):
            yield memory.text

    chat = ScriptedChat(replies=["Where was Elena Marsh born?"])
    reasoner = CompMemReasoner(index=retriever.index, chat_model=chat, recall_config=READ_ALL, reader=Parrot())
    asked = {"question": "Where was she born?", "chat_history": [HumanMessage("Who is Marsh?")]}
    output = reasoner.invoke(asked)
    assert output["answer"] == "Where was Elena Marsh born?"
    assert output["usage"]["model_calls"] == len(chat.asked) == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("encoder", [HashingEncoder(), None])
async def test_the_backbone_reads_kv_memory(saved_model, tmp_path, monkeypatch, device, encoder):
    keep_short(monkeypatch, tokens=8)
    settings = IndexConfig(memory="kv", backbone=str(saved_model()), encoder=encoder, chunk_tokens=256)
    with MemoryIndex.create(tmp_path / "index", settings, runtime=RuntimeConfig(device=device)) as made:
        retriever = CompMemRetriever(index=made, k=2)
        retriever.upsert(WORLD)
        assert len(retriever.invoke(QUESTION)) == len(retriever.invoke(QUESTION, method="gate")) == 2
        recorder, reasoner = Recorder(), CompMemReasoner(index=made)
        output = reasoner.invoke(QUESTION, {"callbacks": [recorder]})
        calls, steps = output["usage"]["model_calls"], len(output["steps"])
        assert steps > 0 and (calls >= steps if encoder is None else calls == 1)  # not trained for it, it only writes
        assert [n for _, n, _ in recorder.tree()].count("reading") == len(output["steps"])
        streamed = list(reasoner.stream(QUESTION))
        assert _same(sum(streamed[1:], streamed[0]), output)
        assert _same(await reasoner.ainvoke(QUESTION), output)
        assert all(_same(one, output) for one in await reasoner.abatch([QUESTION] * 3))
        assert _same(copy.deepcopy(reasoner).invoke(QUESTION), output)
        chat = ScriptedChat(replies=["Where was Elena Marsh born?"])
        talking = CompMemReasoner(index=made, chat_model=chat, recall_config=RecallConfig(reader="latent"))
        told = talking.invoke({"question": "Where was she born?", "chat_history": [HumanMessage("Who is Marsh?")]})
        assert told["usage"]["model_calls"] == len(told["steps"]) + 1 + bool(told["working_memory"])


async def test_a_backbone_that_weighs_does_so_behind_the_tracing(tmp_path):
    settings = IndexConfig(memory="kv", backbone="embedded", encoder=None, chunk_tokens=96)
    with MemoryIndex.create(tmp_path / "index", settings, runtime=RuntimeConfig(device="cpu")) as made:
        made.add(
            CoreDocument(id=p, text=f"{p} lives in {c}.") for p, c in (("Tovin Hask", "Wend"), ("Marel Pelt", "Mur"))
        )
        question = "In which city does Tovin Hask live?"
        recorder, reasoner, own = Recorder(), CompMemReasoner(index=made), made.answer(question)
        output = reasoner.invoke(question, {"callbacks": [recorder]})
        assert [step.recalls[0].chunk.document_id for step in own.steps] == ["Tovin Hask"]
        assert len(output["steps"]) == [n for _, n, _ in recorder.tree()].count("reading") == 1
        assert output["working_memory"] == (await reasoner.ainvoke(question))["working_memory"] == own.working_memory


TREE = [
    ("chain", "asking", None),
    ("retriever", "recall", "asking"),
    ("chain", "reading", "asking"),
    ("chat", "ScriptedChat", "reading"),
    ("retriever", "recall", "asking"),
    ("chain", "reading", "asking"),
    ("chat", "ScriptedChat", "reading"),
    ("chain", "answer", "asking"),
    ("chat", "ScriptedChat", "answer"),
]


@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke", "astream"])
async def test_every_run_nests_and_inherits(retriever, way):
    recorder, reasoner = Recorder(), chatting(retriever)
    config = {"callbacks": [recorder], "tags": ["mine"], "metadata": {"user": 7}, "run_name": "asking"}
    await ask(reasoner, way, config)
    tree = [(k, "ScriptedChat" if k == "chat" else n, p) for k, n, p in recorder.tree()]
    assert tree == TREE
    assert set(recorder.ended) == set(recorder.started)
    for run in recorder.started.values():
        assert "mine" in run["tags"]
        assert run["metadata"]["user"] == 7
    runs = list(recorder.started)
    assert recorder.started[runs[1]]["inputs"] == QUESTION
    assert len(recorder.ended[runs[1]]) == 2
    assert recorder.ended[runs[5]] == {
        "working_memory": "Elena Marsh invented it; she was born in Tarnhill.", "updated": True, "exit": True
    }  # fmt: skip
    assert recorder.ended[runs[7]] == {"answer": "In Tarnhill."}
    assert recorder.ended[runs[0]]["answer"] == "In Tarnhill."
    assert recorder.ended[runs[0]]["usage"]["steps"] == 2


async def test_events_show_recalls_readings_and_tokens(retriever):
    events = [e async for e in chatting(retriever).astream_events(QUESTION, version="v2")]
    kinds = [(e["event"], e["name"]) for e in events]
    for kind, count in [
        (("on_retriever_start", "recall"), 2),
        (("on_retriever_end", "recall"), 2),
        (("on_chain_start", "reading"), 2),
        (("on_chain_end", "reading"), 2),
        (("on_chat_model_start", "ScriptedChat"), 3),
        (("on_chain_end", "CompMemReasoner"), 1),
    ]:
        assert kinds.count(kind) == count, kind
    said = [e["data"]["chunk"] for e in events if e["event"] == "on_chain_stream" and e["name"] == "CompMemReasoner"]
    assert "".join(part.get("answer", "") for part in said) == "In Tarnhill."
    root = events[0]["run_id"]
    assert all(root in e["parent_ids"] for e in events if e["run_id"] != root)
    assert events[-1]["data"]["output"]["answer"] == "In Tarnhill."


async def test_without_a_chat_model_recalls_and_readings_show_too(reasoner):
    recorder = Recorder()
    steps = len(reasoner.invoke(QUESTION, {"callbacks": [recorder]})["steps"])
    names = [n for _, n, _ in recorder.tree()]
    assert names.count("reading") == steps
    assert names.count("answer") == 1
    assert set(recorder.ended) == set(recorder.started)


def test_batches_return_exceptions(reasoner):
    good, bad = reasoner.batch([QUESTION, {"question": 7}], return_exceptions=True)
    assert "Tarnhill" in good["answer"]
    assert isinstance(bad, ValueError)


async def test_concurrency_is_the_callers():
    running, most, guard = 0, 0, threading.Lock()

    class Counting(HashingEncoder):
        def encode(self, texts):
            nonlocal running, most
            with guard:
                running += 1
                most = max(most, running)
            time.sleep(0.005)
            out = super().encode(texts)
            with guard:
                running -= 1
            return out

    counted = make_index(encoder=Counting())
    counted.add([CoreDocument(id="a", text="Tarnhill is a town.")])
    reasoner = CompMemReasoner(index=counted)
    await reasoner.abatch([QUESTION] * 6, {"max_concurrency": 2})
    reasoner.batch([QUESTION] * 6, {"max_concurrency": 2})
    assert most <= 2


def test_schemas(reasoner):
    asked, told = reasoner.get_input_jsonschema(), reasoner.get_output_jsonschema()
    assert {"type": "string"} in asked["anyOf"]
    assert set(asked["$defs"]["ReasonerInput"]["properties"]) == {"question", "chat_history", "filter"}
    assert asked["$defs"]["ReasonerInput"]["required"] == ["question"]
    assert set(told["$defs"]["ReasonerOutput"]["properties"]) == {
        "answer", "found", "context", "working_memory", "steps", "usage", "stop_reason", "messages"
    }  # fmt: skip
    assert set(asked["$defs"]["MessagesInput"]["properties"]) == {"messages", "filter"}
    assert reasoner.get_graph().draw_mermaid()
    assert reasoner.get_config_jsonschema()
    assert set(CompMemReasoner.model_json_schema()["properties"]) >= {"chat_model", "condense_prompt", "filter"}
    chosen = reasoner.configurable_fields(chat_model=ConfigurableField(id="model"))
    assert "model" in str(chosen.get_config_jsonschema()["$defs"]["Configurable"]["properties"])


async def test_as_a_tool(reasoner):
    tool = reasoner.as_tool(name="memory", description="Knows things.")
    call = {"name": "memory", "args": {"question": QUESTION}, "id": "1", "type": "tool_call"}
    recorder = Recorder()
    message = tool.invoke(call, {"callbacks": [recorder]})
    sources = ", ".join(f"[{n}] {name}" for n, name in enumerate(ids(message.artifact["context"]), 1))
    assert message.content.endswith(f"\n\nSources: {sources}")
    assert set(ids(message.artifact["context"])) == {"orchid", "marsh"}
    assert any(r["name"] == "CompMemReasoner" and r["parent"] for r in recorder.started.values())
    assert (await tool.ainvoke(call)).content == message.content
    assert tool.args_schema.model_json_schema()["required"] == ["question"]

    class Narrow(BaseModel):
        question: str
        filter: dict

    narrow = reasoner.as_tool(Narrow)
    assert narrow.name == "answer_from_memory"
    told = narrow.invoke({"name": narrow.name, "args": {"question": QUESTION, "filter": {"title": "Esk"}}, "id": "1",
                          "type": "tool_call"})  # fmt: skip
    assert "Tarnhill" not in told.content
    with pytest.raises(ValueError, match="args_schema"):
        reasoner.as_tool(arg_types={"question": str})


def test_in_chains(reasoner, retriever):
    chain = RunnablePassthrough.assign(context=lambda x: x["question"]) | reasoner | (lambda out: out["answer"])
    assert "Tarnhill" in chain.invoke({"question": QUESTION})
    told = list((reasoner | RunnableLambda(lambda out: out["answer"])).stream(QUESTION))
    assert "Tarnhill" in "".join(told)
    safe = CompMemReasoner(index=retriever.index, chat_model=ScriptedChat(replies=[OSError("down")]))
    assert "Tarnhill" in safe.with_fallbacks([reasoner]).invoke(QUESTION)["answer"]
    quick = reasoner.configurable_fields(recall_config=ConfigurableField(id="loop"))
    one = {"configurable": {"loop": RecallConfig(max_steps=1)}}
    assert len(quick.invoke(QUESTION, one)["steps"]) == 1


def test_as_a_node_of_a_graph(reasoner, retriever):
    from langgraph.checkpoint.memory import InMemorySaver
    from langgraph.graph import END, START, StateGraph

    class State(TypedDict, total=False):
        question: str
        chat_history: list[Any]
        answer: str
        context: list[Document]
        steps: list[Any]

    def graph(node):
        built = StateGraph(State)
        built.add_node("reason", node)
        built.add_edge(START, "reason")
        built.add_edge("reason", END)
        return built.compile(checkpointer=InMemorySaver())

    config = {"configurable": {"thread_id": "1"}}
    state = graph(reasoner).invoke({"question": QUESTION}, config)
    assert "Tarnhill" in state["answer"]
    assert set(ids(state["context"])) == {"orchid", "marsh"}
    tokens = [
        message.content
        for message, about in graph(chatting(retriever)).stream({"question": QUESTION}, config, stream_mode="messages")
        if "answer" in about["tags"] and isinstance(message, AIMessage)
    ]
    assert "".join(tokens) == "In Tarnhill."


async def test_a_fallback_model_takes_over(retriever):
    model = ScriptedChat(replies=[OSError("down")]).with_fallbacks([ScriptedChat(replies=[STEP_2, "In Tarnhill."])])
    reasoner = CompMemReasoner(index=retriever.index, chat_model=model, recall_config=READ_ALL.replace(reader="chat"))
    assert reasoner.invoke(QUESTION)["answer"] == "In Tarnhill."


# Copies, threads, time


def _copies(thing):
    return copy.deepcopy(thing), pickle.loads(pickle.dumps(thing)), thing.model_copy(), thing.model_copy(deep=True)


def test_copies_work(retriever):
    retriever.k = 2
    for made in _copies(retriever):
        assert made.k == 2
        assert made.invoke(QUESTION) == retriever.invoke(QUESTION)
    for made in _copies(chatting(retriever)):
        assert made.invoke(QUESTION)["answer"] == "In Tarnhill."
        made.chat_model.asked.clear()


def test_many_threads_give_the_answers_of_one(reasoner, retriever):
    questions = [
        QUESTION, "Who is the mayor of Tarnhill?", "What did Jonas Veld do before politics?", "How long is the Esk?",
        "What does the Orchid device measure?",
    ]  # fmt: skip
    jobs = [(questions[n % 5], n % 3) for n in range(15)]

    def ask(job):
        question, kind = job
        if kind == 0:
            return reasoner.invoke(question)["answer"]
        if kind == 1:
            return ids(retriever.invoke(question, k=3))
        return "".join(part.get("answer", "") for part in reasoner.stream(question)).strip()

    alone = [ask(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(ask, jobs * 4))
    assert told == alone * 4


async def test_the_event_loop_is_never_blocked(own):
    reasoner = CompMemReasoner(index=own.index)
    own.index.config.encoder.seconds = 0.2
    longest, last = 0.0, time.perf_counter()
    task = asyncio.create_task(reasoner.ainvoke(QUESTION))
    while not task.done():
        await asyncio.sleep(0.005)
        now = time.perf_counter()
        longest, last = max(longest, now - last), now
    assert "Tarnhill" in (await task)["answer"]
    assert longest < 0.15


@pytest.mark.parametrize("way", ["cancel", "timeout"])
@pytest.mark.parametrize("kind", ["retriever", "reasoner", "chatting", "stream"])
async def test_a_cancelled_question_stops_within_a_step(own, way, kind):
    encoder = own.index.config.encoder
    config = LoopConfig(gate="off", exit_gate=False)
    chat = None
    encoder.seconds = 0.1
    if kind == "retriever":
        work = CompMemRetriever(index=own.index, recall_config=config).ainvoke(QUESTION)
    elif kind == "stream":

        async def consume():
            async for _ in CompMemReasoner(index=own.index, recall_config=config).astream(QUESTION):
                pass

        work = consume()
    else:
        if kind == "chatting":
            encoder.seconds = 0.0
            chat = ScriptedChat(replies=[STEP_1], seconds=0.5)
        work = CompMemReasoner(index=own.index, recall_config=config, chat_model=chat).ainvoke(QUESTION)
    task = asyncio.create_task(work)
    if way == "cancel":
        await asyncio.sleep(0.15)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    else:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 0.15)
    calls = len(chat.asked) if chat else len(encoder.calls)
    await asyncio.sleep(0.4)
    assert (len(chat.asked) if chat else len(encoder.calls)) - calls <= 1


async def test_a_stream_left_early_stops_the_loop(own):
    encoder = own.index.config.encoder
    reasoner = CompMemReasoner(index=own.index, recall_config=LoopConfig(gate="off", exit_gate=False))
    recorder = Recorder()
    stream = reasoner.astream(QUESTION, {"callbacks": [recorder]})
    assert (await anext(stream))["steps"][0]["number"] == 1
    await stream.aclose()
    calls = len(encoder.calls)
    await asyncio.sleep(0.1)
    assert len(encoder.calls) == calls
    assert set(recorder.ended) == set(recorder.started)
    sync = reasoner.stream(QUESTION)
    assert next(sync)["steps"][0]["number"] == 1
    sync.close()


def test_seconds_bound_the_loop(own):
    own.index.config.encoder.seconds = 0.05
    config = LoopConfig(gate="off", exit_gate=False, max_seconds=0.01)
    output = CompMemReasoner(index=own.index, recall_config=config).invoke(QUESTION)
    assert len(output["steps"]) == 1
    assert output["answer"]


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


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("error", [OSError("connection lost"), TimeoutError("30 s"), ValueError("quota")])
async def test_a_model_that_fails_leaves_the_steps_so_far(retriever, way, error):
    recorder, reasoner = Recorder(), chatting(retriever, STEP_1, error)
    config = {"callbacks": [recorder]}
    with pytest.raises(ReasoningError, match=f"the chat model failed: {type(error).__name__}") as caught:
        await ask(reasoner, way, config)
    assert isinstance(caught.value, LangChainException)
    assert isinstance(caught.value, ReaderError)
    assert [type(step) for step in caught.value.steps] == [Step]
    assert caught.value.steps[0].working_memory == "Elena Marsh invented the Orchid device."
    assert repr(caught.value.__cause__.__cause__) == repr(error)
    assert set(recorder.ended) == set(recorder.started)


def test_a_model_that_fails_over_the_history(retriever):
    asked = {"question": "Where?", "chat_history": [HumanMessage("Hi")]}
    with pytest.raises(ReasoningError, match="the chat model failed: OSError: down") as caught:
        chatting(retriever, OSError("down")).invoke(asked)
    assert caught.value.steps == ()


@pytest.mark.parametrize("nonsense", ["", "   ", "I like turtles.", "<update>", "<check>maybe</check>" * 50])
async def test_a_model_that_talks_nonsense_finds_nothing(retriever, nonsense):
    for output in (
        chatting(retriever, nonsense).invoke(QUESTION), await chatting(retriever, nonsense).ainvoke(QUESTION)
    ):  # fmt: skip
        assert output["working_memory"] == ""
        assert output["context"] == []
        assert output["usage"]["malformed_replies"] == len(output["steps"]) > 0
        assert "Nothing was found" in output["answer"]


def test_a_model_that_gives_no_answer(retriever):
    with pytest.raises(ReasoningError) as caught:
        chatting(retriever, STEP_2, "").invoke(QUESTION)
    assert len(caught.value.steps) == 1


def test_a_model_that_gives_no_text(retriever):
    reasoner = CompMemReasoner(
        index=retriever.index,
        chat_model=RunnableLambda(lambda messages: 42),
        recall_config=READ_ALL.replace(reader="chat"),
    )
    with pytest.raises(ReasoningError, match="gave a int, not text"):
        reasoner.invoke(QUESTION)
    with pytest.raises(ReasoningError, match="gave a int, not text"):
        reasoner.invoke({"question": "Where?", "chat_history": [HumanMessage("Hi")]})


def test_an_empty_index(tmp_path):
    with make_index(tmp_path / "index") as made:
        assert CompMemRetriever(index=made).invoke(QUESTION) == []
        output = CompMemReasoner(index=made).invoke(QUESTION)
        assert (output["context"], output["steps"], output["working_memory"]) == ([], [], "")


def test_a_retriever_whose_chat_reader_fails(retriever):
    def broken(messages):
        raise OSError("down")

    with pytest.raises(ReasoningError, match="the chat model failed: OSError: down"):
        CompMemRetriever(index=retriever.index, recall_config=READ_ALL, reader=ChatReader(broken)).invoke(QUESTION)


async def test_slow_encoders_run_side_by_side(own):
    own.index.config.encoder.seconds = 0.3
    for ask in (own.bind(method="gate"), own.bind(filter={"title": "Esk"})):
        await ask.ainvoke("warm")
        began = time.perf_counter()
        await asyncio.gather(*(ask.ainvoke(f"{QUESTION} {n}") for n in range(4)))
        assert time.perf_counter() - began < 0.6


def test_little_is_added_to_the_time_of_the_core(retriever, reasoner):
    def added(core, adapter):
        """The time of the adapter as a multiple of the core's, the median of pairs."""
        extra = []
        for _ in range(15):
            began = time.perf_counter()
            core()
            between = time.perf_counter()
            adapter()
            extra.append((time.perf_counter() - between) / (between - began))
        return sorted(extra)[7]

    core = retriever.index
    assert added(lambda: core.recall(QUESTION, 4), lambda: retriever.invoke(QUESTION)) < 3
    assert added(lambda: core.answer(QUESTION), lambda: reasoner.invoke(QUESTION)) < 3
    assert added(lambda: list(core.stream(QUESTION)), lambda: list(reasoner.stream(QUESTION))) < 3
