"""A chat model with retries, fallbacks, a cache or a usage callback answers as in any other chain."""

from typing import TypedDict

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import get_usage_metadata_callback
from langchain_core.messages import AIMessage
from langgraph.graph import START, StateGraph

from compmem import RecallConfig
from langchain_compmem import CompMemReasoner, CompMemRetriever
from tests.frameworks_langchain import QUESTION, WORLD, Recorder, ScriptedChat, make_index

USAGE = {"input_tokens": 7, "output_tokens": 3, "total_tokens": 10}
ONE_CALL = RecallConfig(writer_blocks=2)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with make_index(tmp_path_factory.mktemp("index") / "index") as made:
        CompMemRetriever(index=made).upsert(WORLD)
        yield made


async def asked(reasoner, way, config=None):
    return reasoner.invoke(QUESTION, config) if way == "invoke" else await reasoner.ainvoke(QUESTION, config)


class Late(ScriptedChat):
    """Fails within a stream, after the first token."""

    def _stream(self, messages, stop=None, run_manager=None, **kwargs):
        yield next(super()._stream(messages, stop, run_manager, **kwargs))
        raise ConnectionError("cut off")

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        raise ConnectionError("down")


class Uncounted(ScriptedChat):
    """Counts tokens, but not in a stream."""

    def _stream(self, *args, **kwargs):
        for chunk in super()._stream(*args, **kwargs):
            chunk.message.usage_metadata = None
            yield chunk


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_model_that_fails_once_is_asked_again(index, way):
    chat = ScriptedChat(replies=[ConnectionError("down"), "In Tarnhill."])
    again = chat.with_retry(stop_after_attempt=3, wait_exponential_jitter=False)
    output = await asked(CompMemReasoner(index=index, chat_model=again, recall_config=ONE_CALL), way)
    assert output["answer"] == "In Tarnhill."
    assert len(chat.asked) == 2


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_fallback_takes_over_from_a_model_that_fails_late(index, way):
    chat = Late(replies=["In Rome."]).with_fallbacks([ScriptedChat(replies=["In Tarnhill."])])
    output = await asked(CompMemReasoner(index=index, chat_model=chat, recall_config=ONE_CALL), way)
    assert output["answer"] == "In Tarnhill."


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_the_cache_of_the_model_is_used(index, way):
    chat = ScriptedChat(replies=["In Tarnhill."], cache=InMemoryCache())
    reasoner = CompMemReasoner(index=index, chat_model=chat, recall_config=ONE_CALL)
    first, second = await asked(reasoner, way), await asked(reasoner, way)
    assert first["answer"] == second["answer"] == "In Tarnhill."
    assert len(chat.asked) == 1


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_usage_is_counted_where_a_stream_has_none(index, way):
    reply = AIMessage("In Tarnhill.", usage_metadata=USAGE, response_metadata={"model_name": "scripted"})
    chat = Uncounted(replies=[reply])
    reasoner = CompMemReasoner(index=index, chat_model=chat, recall_config=ONE_CALL)
    with get_usage_metadata_callback() as counting:
        output = await asked(reasoner, way)
    assert counting.usage_metadata["scripted"]["total_tokens"] == 10
    assert output["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_graph_streams_the_tokens_of_a_node_that_invokes(index, way):
    reasoner = CompMemReasoner(
        index=index, chat_model=ScriptedChat(replies=["It is in Tarnhill."]), recall_config=ONE_CALL
    )

    class State(TypedDict):
        answer: str

    async def anode(state):
        return {"answer": (await reasoner.ainvoke(QUESTION))["answer"]}

    def node(state):
        return {"answer": reasoner.invoke(QUESTION)["answer"]}

    builder = StateGraph(State).add_node("ask", node if way == "invoke" else anode).add_edge(START, "ask")
    graph = builder.compile()
    tokens = [message.content async for message, _ in graph.astream({"answer": ""}, stream_mode="messages")]
    assert "".join(tokens) == "It is in Tarnhill."
    assert len(tokens) >= 4


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_the_answer_as_a_message_has_the_id_of_the_reply(index, way):
    reasoner = CompMemReasoner(index=index, chat_model=ScriptedChat(replies=["In Tarnhill."]), recall_config=ONE_CALL)
    recorder, given = Recorder(), {"messages": [("human", QUESTION)]}
    config = {"callbacks": [recorder]}
    output = reasoner.invoke(given, config) if way == "invoke" else await reasoner.ainvoke(given, config)
    (reply,) = (recorder.ended[name] for name, run in recorder.started.items() if run["kind"] == "chat")
    assert output["messages"][-1].id == reply.generations[0][0].message.id is not None
