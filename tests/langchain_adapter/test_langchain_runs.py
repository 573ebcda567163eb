"""Runs of LangChain: tracing, batches, copies, threads, the event loop, cancelled streams."""

import asyncio
import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypedDict

import pytest
from langchain_core.documents import Document
from langchain_core.messages import AIMessage
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnablePassthrough
from pydantic import BaseModel

from compmem import Document as CoreDocument
from compmem import (
    LoopConfig,
    RecallConfig,
)
from langchain_compmem import CompMemReasoner, CompMemRetriever
from tests.frameworks_langchain import QUESTION, HashingEncoder, Recorder, ScriptedChat, make_index
from tests.langchain_world import READ_ALL, STEP_1, STEP_2, ask, chatting, ids

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


async def test_slow_encoders_run_side_by_side(own):
    own.index.config.encoder.seconds = 0.3
    for bound in (own.bind(method="gate"), own.bind(filter={"title": "Esk"})):
        await bound.ainvoke("warm")
        began = time.perf_counter()
        await asyncio.gather(*(bound.ainvoke(f"{QUESTION} {n}") for n in range(4)))
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
