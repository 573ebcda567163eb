"""The chat engine: conversations, their history and streams."""

import pytest
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import ChatMode
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import Memory

from compmem import RecallConfig
from llama_index_compmem import CompMemChatEngine
from tests.frameworks_llama_index import QUESTION, QUOTED, READING, FakeLLM, failing, names, read_reply

# Chat


async def test_a_conversation_without_an_llm(index):
    chat = index.as_chat_engine()
    assert isinstance(chat, CompMemChatEngine)
    first = chat.chat("Who invented the Orchid device?")
    assert "Elena Marsh" in first.response
    assert names(first.source_nodes)[0] == "orchid"
    second = await chat.achat("And where was she born?")
    assert second.response.startswith("Elena Marsh was born in Tarnhill.")
    assert second.sources[0].raw_input["query"].startswith("And where was she born? (Dr Elena Marsh")
    third = chat.chat("Who plays the cello?")
    assert third.sources[0].raw_input == {"query": "Who plays the cello?"}
    assert [m.role for m in chat.chat_history] == ["user", "assistant"] * 3
    assert chat.chat_history[2].content == "And where was she born?"
    chat.reset()
    assert chat.chat_history == []
    assert chat.chat("Why?").sources[0].raw_input == {"query": "Why?"}


async def test_a_conversation_with_an_llm(index):
    def reply(prompt):
        if "Rewrite the message" in prompt:
            assert "user: Who made the Orchid device?" in prompt
            return "Where was Elena Marsh, who invented the Orchid device, born?"
        return read_reply(prompt)

    for asked in ("chat", "achat"):
        llm = FakeLLM(reply)
        chat = index.as_chat_engine(llm=llm)
        chat.chat("Who made the Orchid device?")
        message = "And where was she born?"
        response = chat.chat(message) if asked == "chat" else await chat.achat(message)
        assert response.response == "The answer is Tarnhill."
        assert response.sources[0].raw_input["query"].startswith("Where was Elena Marsh")
        assert response.metadata.found


async def test_a_conversation_is_streamed(index):
    chat = index.as_chat_engine("condense_question", llm=FakeLLM(), recall_config=READING)
    streamed = chat.stream_chat(QUESTION)
    assert list(streamed.response_gen) == ["The ", "answer ", "is ", "Tarnhill."]
    assert names(streamed.source_nodes) == ["orchid", "marsh"]
    assert [m.content for m in chat.chat_history] == [QUESTION, "The answer is Tarnhill."]
    chat = index.as_chat_engine()
    streamed = await chat.astream_chat(QUESTION)
    assert "".join([p async for p in streamed.async_response_gen()]) == QUOTED
    assert [m.content for m in chat.chat_history] == [QUESTION, QUOTED]


async def test_a_history_is_given_and_kept_elsewhere(index):
    before = [
        ChatMessage(role="user", content="Who is it?"),
        ChatMessage(role="assistant", content="It is Jonas Veld."),
    ]
    chat = index.as_chat_engine(chat_history=before)
    assert chat.chat("What does he play?").sources[0].raw_input == {"query": "What does he play? (Jonas Veld)"}
    chat.chat("What does he play?", chat_history=before)
    assert len(chat.chat_history) == 4
    kept = Memory.from_defaults(session_id="s")
    other = index.as_chat_engine(memory=kept)
    await other.achat(QUESTION)
    assert [m.content for m in await kept.aget_all()] == [QUESTION, QUOTED]


def test_other_modes_are_the_frameworks_own(index):
    llm = FakeLLM(lambda prompt: "Tarnhill.")
    for mode, kind in (
        (ChatMode.CONTEXT, ContextChatEngine),
        ("condense_plus_context", CondensePlusContextChatEngine),
        ("simple", SimpleChatEngine),
    ):
        chat = index.as_chat_engine(mode, llm=llm)
        assert isinstance(chat, kind)
        assert str(chat.chat(QUESTION)) == "Tarnhill."
        with pytest.raises(ValueError, match="needs llm="):
            index.as_chat_engine(mode)
    assert len(index.as_chat_engine("context", llm=llm, similarity_top_k=1).chat(QUESTION).source_nodes) == 1
    limited = index.as_chat_engine("context", llm=llm, recall_config=RecallConfig(max_steps=1))
    assert limited._retriever._recall_config.max_steps == 1
    for gone in ("react", "nonsense"):
        with pytest.raises(ValueError, match=r"removed|Unknown chat mode"):
            index.as_chat_engine(gone, llm=llm)


# What goes wrong


async def test_a_chat_that_fails_leaves_the_history_alone(index):
    chat = index.as_chat_engine(llm=FakeLLM(failing))
    with pytest.raises(ValueError, match="rate limit"):
        chat.chat(QUESTION)
    with pytest.raises(ValueError, match="rate limit"):
        await chat.achat(QUESTION)

    def broken(prompt):
        return read_reply(prompt) if "Blocks to read" in prompt else "The answer <break> is"

    streaming = index.as_chat_engine(llm=FakeLLM(broken))
    with pytest.raises(ValueError, match="connection lost"):
        list(streaming.stream_chat(QUESTION).response_gen)
    streamed = await streaming.astream_chat(QUESTION)
    with pytest.raises(ValueError, match="connection lost"):
        [p async for p in streamed.async_response_gen()]
    assert chat.chat_history == streaming.chat_history == []
    silent = index.as_chat_engine(llm=FakeLLM(lambda prompt: ""), chat_history=[ChatMessage(role="user", content="Hm")])
    with pytest.raises(ValueError, match="gave nothing when asked to make the message standalone"):
        silent.chat("Who?")


def test_messages_and_histories_of_the_wrong_type_are_refused(index):
    chat = index.as_chat_engine()
    for wrong in ("hello", ["hello"], {"role": "user"}, [("user", "hello")]):
        with pytest.raises(ValueError, match="must be a list of ChatMessage"):
            chat.chat("Hello?", chat_history=wrong)
        with pytest.raises(ValueError, match="must be a list of ChatMessage"):
            index.as_chat_engine(chat_history=wrong)
    for wrong in ("", None, 3):
        with pytest.raises(ValueError, match="must be a text"):
            chat.chat(wrong)
    with pytest.raises(ValueError, match="question is empty"):
        index.as_query_engine().query(" ")
