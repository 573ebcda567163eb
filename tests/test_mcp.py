"""The MCP server with the official SDK's client: in memory, and as a process on standard input and output."""

import sys

import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from compmem import Document, IndexConfig, MemoryIndex
from compmem.serving.limits import Limits
from compmem.serving.tools import create_tools
from tests.hashing import HashEncoder

QUESTION = "Who insures the building that Acme rents?"
DOCUMENTS = [
    Document(id="acme", title="Acme", text="Acme rents the Harbour Building.", metadata={"year": 2024}),
    Document(id="harbour", title="Harbour Building", text="The Harbour Building is insured by Lloyd."),
]


@pytest.fixture
def index():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        made.add(DOCUMENTS)
        yield made


async def test_an_agent_finds_answers_lists_and_adds(index):
    async with Client(create_tools(index)) as client:
        tools = {t.name: t.annotations.read_only_hint for t in (await client.list_tools()).tools}
        assert tools == {"recall": True, "answer": True, "list_documents": True, "add_documents": False}
        found = (await client.call_tool("recall", {"question": QUESTION, "k": 2})).structured_content["recalls"]
        assert [r["chunk"] for r in found] == [r.chunk.id for r in index.recall(QUESTION, 2)]
        told = (await client.call_tool("answer", {"question": QUESTION})).structured_content
        assert told["answer"] == index.answer(QUESTION).text
        assert {s["document"] for s in told["sources"]} == {"acme", "harbour"}
        new = {"documents": [{"id": "zoo", "title": "Zoo", "text": "The zoo opened in 1901."}]}
        assert (await client.call_tool("add_documents", new)).structured_content["added"] == 1
        assert (await client.call_tool("add_documents", new)).structured_content["added"] == 0
        page = (await client.call_tool("list_documents", {"offset": 2})).structured_content
        assert ([d["id"] for d in page["documents"]], page["total"]) == (["zoo"], 3)
        few = await client.call_tool("list_documents", {"filter": {"year": {">=": 2020}}})
        assert few.structured_content["total"] == 1


async def test_what_is_wrong_with_a_call_is_told_and_nothing_is_changed(index):
    async with Client(create_tools(index, limits=Limits(documents=2, body_bytes=50))) as client:
        for name, arguments, told in (
            ("recall", {"question": " "}, "empty"),
            ("recall", {"question": "Who?", "k": 0}, "greater than or equal to 1"),
            ("recall", {"question": "Who?", "filter": {"year": {"~": 1}}}, "unknown filter operator"),
            ("answer", {"question": "x" * 5000}, "at most 4000"),
            ("add_documents", {"documents": [{"text": "a"}] * 3}, "at most 2"),
            ("add_documents", {"documents": [{"text": "a" * 51}]}, "more than 50 characters"),
            ("add_documents", {"documents": [{"text": "a", "path": "/etc"}]}, "path"),
            ("add_documents", {"documents": [{"text": ""}]}, "no text"),
        ):
            result = await client.call_tool(name, arguments)
            assert result.is_error, (name, arguments)
            assert told in result.content[0].text
    assert len(index) == 2


async def test_a_read_only_server_has_no_tool_that_writes(index):
    async with Client(create_tools(index, read_only=True)) as client:
        assert "add_documents" not in {t.name for t in (await client.list_tools()).tools}
        refused = await client.call_tool("add_documents", {"documents": [{"text": "a"}]})
        assert refused.is_error
    assert len(index) == 2


async def test_the_command_serves_on_standard_input_and_output(tmp_path):
    with MemoryIndex.create(tmp_path / "notes.mem") as made:
        made.add(DOCUMENTS)
    start = ["-c", "from compmem.cli import main; main()", "mcp", str(tmp_path / "notes.mem"), "--read-only"]
    server = StdioServerParameters(command=sys.executable, args=start, env={"PYTHONPATH": ":".join(sys.path)})
    async with Client(stdio_client(server)) as client:
        told = (await client.call_tool("answer", {"question": QUESTION})).structured_content
    assert "Lloyd" in told["answer"]
