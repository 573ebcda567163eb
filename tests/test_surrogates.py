"""A lone surrogate from a model or a caller is replaced and does not fail the call."""

import asyncio

import pytest
from langchain_core.tools import create_retriever_tool
from llama_index.core.tools import QueryEngineTool

from compmem import ChatReader, Document, IndexConfig, MemoryBlock, MemoryIndex, RecallConfig, WorkingMemory
from compmem.schema import Chunk
from langchain_compmem import CompMemRetriever
from llama_index_compmem import CompMemIndex
from tests.hashing import HashEncoder

REPLY = "<check>yes</check><update>Lloyd \ud800 insures it.</update><next>end</next>"
QUESTION = "Who insures \udc00 the Harbour Building?"


@pytest.fixture
def index(tmp_path):
    with MemoryIndex.create(tmp_path / "m", IndexConfig(encoder=HashEncoder())) as made:
        made.add([Document(id="policy", title="Harbour Building", text="The Harbour Building is insured by Lloyd.")])
        yield made


def whole(messages):
    return REPLY


def in_pieces(messages):
    return iter([REPLY[:30], REPLY[30:]])


async def awaited(messages):
    return REPLY


@pytest.mark.parametrize("chat", [whole, in_pieces, awaited])
def test_a_reply_is_read_without_it(chat):
    block = MemoryBlock(chunk=Chunk(text="A text."))
    reader = ChatReader(chat)
    for reading in (
        reader.read("q", WorkingMemory(), [block]),
        asyncio.run(reader.aread("q", WorkingMemory(), [block])),
    ):
        assert reading.memory.text == "Lloyd \ufffd insures it."


def test_a_question_and_the_notes_on_it_are_answered_without_it(index):
    asked = []

    def chat(messages):
        asked.append(messages[-1]["content"])
        return REPLY

    answer = index.answer(QUESTION, RecallConfig(reader="chat", max_steps=1), chat=chat)
    assert answer.working_memory == "Lloyd \ufffd insures it."
    assert "Who insures \ufffd the Harbour Building?" in asked[0]
    assert [r.chunk.document_id for r in index.recall(QUESTION)] == ["policy"]


def test_the_arguments_of_a_tool_are_taken_without_it(index):
    tool = create_retriever_tool(CompMemRetriever(index=index, k=1), "search", "Searches.")
    assert "insured by Lloyd" in tool.invoke({"query": QUESTION})
    engine = CompMemIndex.from_memory(index).as_query_engine()
    assert "Lloyd" in str(QueryEngineTool.from_defaults(engine, name="ask", description="Answers.").call(QUESTION))
