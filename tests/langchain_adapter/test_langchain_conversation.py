"""Conversations with the reasoner of the LangChain adapter: messages as input, follow-up questions without a model."""

from typing import Annotated, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    HumanMessage,
    HumanMessageChunk,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langgraph.graph import END, START, MessagesState, StateGraph, add_messages

from compmem import ChatPrompts, RecallConfig
from langchain_compmem import CompMemReasoner, CompMemRetriever, ReasoningError
from langchain_compmem.chat import CONDENSE_PROMPT
from langchain_compmem.middleware import CompMemMiddleware
from langchain_compmem.window import estimate_tokens
from tests.frameworks_langchain import UPDATE, Recorder, ScriptedChat, make_index

PEOPLE = [
    Document(id="bolt", page_content="Bolt was founded by Ann Lee."),
    Document(id="lee", page_content="Ann Lee was born in Oslo."),
    Document(id="kay", page_content="Bea Kay was born in Rome."),
]
HISTORY = [("human", "Who founded Bolt?"), ("ai", "Bolt was founded by Ann Lee.")]
FOLLOW_UP = "Where was she born?"
ANSWER = "Ann Lee was born in Oslo."


@pytest.fixture
def reasoner(tmp_path):
    with make_index(tmp_path / "index") as made:
        CompMemRetriever(index=made).upsert(PEOPLE)
        yield CompMemReasoner(index=made)


def ways(reasoner, asked):
    return reasoner.invoke(asked), sum((parts := list(reasoner.stream(asked)))[1:], parts[0])


async def test_a_follow_up_question_needs_no_model(reasoner):
    asked = {"question": FOLLOW_UP, "chat_history": HISTORY}
    for output in (*ways(reasoner, asked), await reasoner.ainvoke(asked)):
        assert output["answer"].strip() == ANSWER
        assert output["usage"]["model_calls"] == 0
        assert "messages" not in output
    assert "Rome" in reasoner.invoke(FOLLOW_UP)["answer"], "without the history, anyone may be meant"


@pytest.mark.parametrize("reads", [None, RecallConfig(reader="chat")])
async def test_system_messages_are_added_to_the_prompt_for_the_answer_alone(reasoner, reads):
    talk = [SystemMessage("Speak {plainly}."), SystemMessage("Be brief."), *HISTORY, HumanMessage(FOLLOW_UP)]
    steps = [] if reads is None else [UPDATE.format(notes=ANSWER, next="end")]
    for asked in (talk, {"question": FOLLOW_UP, "chat_history": talk[:-1]}):
        for way in ("invoke", "ainvoke"):
            chat = ScriptedChat(replies=["Where was Ann Lee born?", *steps, "Oslo."])
            told = CompMemReasoner(index=reasoner.index, chat_model=chat, recall_config=reads)
            output = told.invoke(asked) if way == "invoke" else await told.ainvoke(asked)
            assert output["answer"] == "Oslo."
            *hidden, answer = [prompt[0].content for prompt in chat.asked]
            assert len(hidden) == 1 + len(steps)
            assert answer == f"{ChatPrompts().system}\n\nSpeak {{plainly}}.\n\nBe brief."
            assert not any("plainly" in prompt for prompt in hidden)


def test_system_messages_are_counted(reasoner):
    long, limit = SystemMessage("Be brief. " * 100), RecallConfig(prompt_tokens=700)
    chat = ScriptedChat(replies=["Oslo."])
    told = CompMemReasoner(index=reasoner.index, chat_model=chat, recall_config=limit)
    assert told.invoke([long, ("human", "Where was Ann Lee born?")])["answer"] == "Oslo."
    assert sum(estimate_tokens(str(m.text)) for m in chat.asked[0]) <= 700
    with pytest.raises(ReasoningError, match="the question and the instructions leave"):
        told.invoke([long, long, ("human", "Where was Ann Lee born?")])


@pytest.mark.parametrize("before", [[], [SystemMessage("Speak of Bea Kay.")]])
@pytest.mark.parametrize("after", [[], [AIMessage("", tool_calls=[{"name": "t", "args": {}, "id": "1"}]),
                                        ToolMessage("Bea Kay", tool_call_id="1")]])  # fmt: skip
async def test_a_conversation_is_an_input(reasoner, before, after):
    talk = [*before, *HISTORY, HumanMessage([{"type": "text", "text": FOLLOW_UP}]), *after]
    for asked in (talk, tuple(talk), {"messages": talk}):
        for output in (*ways(reasoner, asked), await reasoner.ainvoke(asked)):
            assert output["answer"].strip() == ANSWER
            assert [(type(m), m.content) for m in output["messages"]] == [(AIMessage, ANSWER)]
    prompt = ChatPromptTemplate.from_messages([*talk[: len(before) + 2], ("human", "{asked}")])
    for output in (*ways(prompt | reasoner, {"asked": FOLLOW_UP}), await (prompt | reasoner).ainvoke(FOLLOW_UP)):
        assert output["answer"].strip() == output["messages"][0].content == ANSWER
    first, second = reasoner.batch([talk, [("human", "Who founded Bolt?")]])
    assert first["answer"] == ANSWER
    assert second["messages"][0].content.startswith("Bolt was founded by Ann Lee.")
    named = {"question": "Where was Bea Kay born?", "messages": talk}
    assert reasoner.invoke(named)["answer"] == "Bea Kay was born in Rome.", "the question is what is asked"


async def test_a_chat_model_gets_the_conversation(reasoner):
    for way in ("sync", "async"):
        chat = ScriptedChat(replies=["Where was Ann Lee born?", "In Oslo."])
        made = CompMemReasoner(index=reasoner.index, chat_model=chat)
        talk = {"messages": [*HISTORY, ("human", FOLLOW_UP)]}
        output = made.invoke(talk) if way == "sync" else await made.ainvoke(talk)
        assert [m.content for m in chat.asked[0][1:]] == [text for _, text in [*HISTORY, ("human", FOLLOW_UP)]]
        assert output["messages"][0].content == output["answer"] == "In Oslo."


async def test_as_a_node_of_a_graph_of_messages(reasoner):
    class Sourced(TypedDict, total=False):
        messages: Annotated[list, add_messages]
        context: list[Document]

    for state in (MessagesState, Sourced):
        built = StateGraph(state)
        built.add_node("reason", reasoner)
        built.add_edge(START, "reason")
        built.add_edge("reason", END)
        graph = built.compile()
        asked = {"messages": [*HISTORY, ("human", FOLLOW_UP)]}
        for out in (graph.invoke(asked), await graph.ainvoke(asked)):
            assert [m.type for m in out["messages"]] == ["human", "ai", "human", "ai"]
            assert out["messages"][-1].content == ANSWER
    assert "lee" in {document.id for document in out["context"]}


def graph_of(node):
    built = StateGraph(MessagesState)
    built.add_node("reason", node)
    built.add_edge(START, "reason")
    built.add_edge("reason", END)
    return built.compile()


@pytest.mark.parametrize(("replies", "settings", "shown"), [
    (["Where was Ann Lee born?", "In Oslo."], {}, ["In ", "Oslo."]),
    (["Where was Ann Lee born?", "SEARCH: Ann Lee", "In Oslo."], {"rounds": 1}, ["In ", "Oslo."]),
    (["Where was Ann Lee born?", "In Oslo."], {"rounds": 1}, ["In Oslo."]),
    (["Where?", UPDATE.format(notes="Ann Lee: Oslo.", next="end"), "In Oslo."], {"reader": "chat"}, ["In ", "Oslo."]),
])  # fmt: skip
async def test_a_graph_streams_the_answer_once_and_nothing_else(reasoner, replies, settings, shown):
    asked = {"messages": [*HISTORY, ("human", FOLLOW_UP)]}

    def graph():
        chat, config = ScriptedChat(replies=replies), RecallConfig(**settings)
        return graph_of(CompMemReasoner(index=reasoner.index, chat_model=chat, recall_config=config))

    streams = (
        [message for message, _ in graph().stream(asked, stream_mode="messages")],
        [message async for message, _ in graph().astream(asked, stream_mode="messages")],
    )
    for messages in streams:
        assert [m.content for m in messages if m.content] == shown
        assert len({m.id for m in messages}) == 1


def test_the_message_has_the_id_of_the_reply_that_it_is_from(reasoner):
    talk = {"messages": [*HISTORY, ("human", FOLLOW_UP)]}
    chat = ScriptedChat(replies=["Where was Ann Lee born?", "In Oslo."])
    made = CompMemReasoner(index=reasoner.index, chat_model=chat)
    assert made.invoke(talk)["messages"][0].id.startswith("lc_run")
    chat = ScriptedChat(replies=["Where was Ann Lee born?"])
    made = CompMemReasoner(index=reasoner.index, chat_model=chat, recall_config=RecallConfig(reader="extractive"))
    assert made.invoke(talk)["messages"][0].id is None


@pytest.mark.parametrize("direct", [True, False])
def test_a_stream_of_an_agent_shows_no_text_of_its_memory_twice(reasoner, direct):
    memory = CompMemReasoner(index=reasoner.index, chat_model=ScriptedChat(replies=["In Oslo."]))
    agent = create_agent(ScriptedChat(replies=["Oslo."]), [], middleware=[CompMemMiddleware(memory, direct=direct)])
    asked = {"messages": [("human", "Where was Ann Lee born?")]}
    texts = [message.content for message, _ in agent.stream(asked, stream_mode="messages")]
    assert [text for text in texts if text] == (["In Oslo."] if direct else ["Oslo."])


def test_the_middleware_asks_with_the_conversation(reasoner):
    agent = create_agent(ScriptedChat(replies=["?"]), [], middleware=[CompMemMiddleware(reasoner, direct=True)])
    state = agent.invoke({"messages": [*HISTORY, ("human", FOLLOW_UP)]})
    assert state["messages"][-1].content == ANSWER


@pytest.mark.parametrize("profile", [None, {"max_input_tokens": 9_000}])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_the_condense_prompt_shows_once_in_a_trace(reasoner, profile, way):
    chat = ScriptedChat(replies=["Where was Ann Lee born?", ANSWER], profile=profile)
    made = []

    def custom(variables):
        made.append(variables)
        return CONDENSE_PROMPT.invoke(variables, {"callbacks": []})

    for prompt, name in ((CONDENSE_PROMPT, "ChatPromptTemplate"), (RunnableLambda(custom), "custom")):
        recorder = Recorder()
        asking = CompMemReasoner(index=reasoner.index, chat_model=chat, condense_prompt=prompt)
        asked, config = {"question": FOLLOW_UP, "chat_history": HISTORY}, {"callbacks": [recorder]}
        _ = asking.invoke(asked, config) if way == "invoke" else await asking.ainvoke(asked, config)
        assert [run for _, run, _ in recorder.tree()].count(name) == 1
    assert len(made) == (1 if profile is None else 2), "the tokens of the prompt are counted only for a known window"


@pytest.mark.parametrize("form", ["history", "messages"])
async def test_messages_added_up_from_a_stream_are_part_of_a_conversation(reasoner, form):
    streamed = AIMessageChunk("Bolt was founded ") + AIMessageChunk("by Ann Lee.")
    history = [HumanMessageChunk("Who founded Bolt?"), streamed]
    asked = (
        {"question": FOLLOW_UP, "chat_history": history}
        if form == "history"
        else [*history, HumanMessageChunk(FOLLOW_UP)]
    )
    assert ANSWER in reasoner.invoke(asked)["answer"]
