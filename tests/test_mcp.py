"""The MCP server with the official SDK's client: in memory, and as the command on standard input and output."""

import asyncio
import os
import sys
from contextlib import asynccontextmanager
from unittest.mock import Mock

import anyio
import pytest
from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.server.stdio import stdio_server

from compmem import Document, IndexConfig, MemoryIndex, __version__
from compmem.cli import app
from compmem.serving import tools
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
        assert client.server_info.version == __version__
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


async def test_a_failure_of_the_index_is_told_without_its_path(tmp_path, caplog):
    with MemoryIndex.create(tmp_path / "private", IndexConfig(encoder=HashEncoder())) as made:
        made.add(DOCUMENTS)
        async with Client(create_tools(made)) as client:
            (tmp_path / "private").rename(tmp_path / "moved")
            result = await client.call_tool("recall", {"question": QUESTION})
    assert result.is_error
    assert result.content[0].text.endswith("the index cannot be read; see the log")
    assert str(tmp_path) in caplog.text


async def test_what_is_wrong_with_a_call_is_told_and_nothing_is_changed(index):
    async with Client(create_tools(index, limits=Limits(documents=2, body_bytes=50))) as client:
        assert not any(t.input_schema["additionalProperties"] for t in (await client.list_tools()).tools)
        for name, arguments, told in (
            ("recall", {"question": " "}, "empty"),
            ("recall", {"question": "Who?", "k": 0}, "greater than or equal to 1"),
            ("recall", {"question": "Who?", "filter": {"year": {"~": 1}}}, "unknown filter operator"),
            ("recall", {"question": "Who?", "k": "3"}, "should be a valid integer"),
            ("recall", {"question": "Who?", "filters": {"year": 2024}}, "Extra inputs are not permitted"),
            ("answer", {"question": "x" * 5000}, "at most 4000"),
            ("add_documents", {"documents": [{"text": "a"}] * 3}, "at most 2"),
            ("add_documents", {"documents": [{"text": "a" * 51}]}, "more than 50 characters"),
            ("add_documents", {"documents": [{"text": "a", "metadata": {"k": "b" * 51}}]}, "more than 50 characters"),
            ("add_documents", {"documents": [{"text": "a", "path": "/etc"}]}, "path"),
            ("add_documents", {"documents": [{"text": ""}]}, "no text"),
        ):
            result = await client.call_tool(name, arguments)
            assert result.is_error, (name, arguments)
            assert told in result.content[0].text
    assert len(index) == 2


async def test_calls_take_turns_and_are_refused_when_too_many_wait(index):
    begun, done = asyncio.Event(), asyncio.Event()

    async def slow(messages):
        begun.set()
        await done.wait()
        yield "Lloyd."

    limits = Limits(at_once=1, waiting=1, wait_seconds=0.2)
    async with Client(create_tools(index, chat=slow, limits=limits)) as client:
        first = asyncio.create_task(client.call_tool("answer", {"question": QUESTION}))
        await asyncio.wait_for(begun.wait(), 30)
        refused = await client.call_tool("recall", {"question": QUESTION})
        assert refused.is_error and "try again later" in refused.content[0].text
        done.set()
        assert not (await first).is_error
        assert not (await client.call_tool("recall", {"question": QUESTION})).is_error


async def test_a_read_only_server_has_no_tool_that_writes(index):
    async with Client(create_tools(index, read_only=True)) as client:
        assert "add_documents" not in {t.name for t in (await client.list_tools()).tools}
        refused = await client.call_tool("add_documents", {"documents": [{"text": "a"}]})
        assert refused.is_error
    assert len(index) == 2


@pytest.fixture
def notes(tmp_path):
    with MemoryIndex.create(tmp_path / "notes.mem") as made:
        made.add(DOCUMENTS)
    return str(tmp_path / "notes.mem")


@asynccontextmanager
async def command(monkeypatch, *arguments):
    """The command in a thread, whose standard input and output are pipes; the client's streams at their other ends."""
    (asked, asking), (telling, told) = os.pipe(), os.pipe()
    monkeypatch.setattr(sys, "stdin", os.fdopen(asked))
    monkeypatch.setattr(sys, "stdout", os.fdopen(told, "w"))

    def run():
        with sys.stdin, sys.stdout:
            app(arguments, standalone_mode=False)

    questions, answers = anyio.wrap_file(os.fdopen(asking, "w")), anyio.wrap_file(os.fdopen(telling))
    running = asyncio.create_task(asyncio.to_thread(run))
    async with answers, stdio_server(answers, questions) as streams:
        yield streams
        await questions.aclose()
        await running


async def test_the_command_serves_on_the_standard_streams(notes, monkeypatch):
    async with Client(command(monkeypatch, "mcp", notes, "--read-only")) as client:
        assert "add_documents" not in {t.name for t in (await client.list_tools()).tools}
        told = (await client.call_tool("answer", {"question": QUESTION})).structured_content
    assert "Lloyd" in told["answer"]


def test_the_command_passes_its_options_on(notes, monkeypatch):
    made = []
    monkeypatch.setattr(tools, "create_tools", lambda index, **options: made.append(options) or Mock())
    asked = ["mcp", notes, "--model", "m", "--base-url", "http://127.0.0.1:9", "--cite", "--at-once", "3"]
    app([*asked, "--answer-seconds", "7", "--waiting", "5", "--wait-seconds", "2"], standalone_mode=False)
    assert made[0]["config"].cite and made[0]["chat"] is not None
    assert made[0]["limits"] == Limits(at_once=3, answer_seconds=7, waiting=5, wait_seconds=2)


@pytest.mark.slow  # a process that loads all libraries; the same command as above
async def test_the_command_serves_as_a_process_of_its_own(notes):
    start = ["-c", "from compmem.cli import main; main()", "mcp", notes, "--read-only"]
    server = StdioServerParameters(command=sys.executable, args=start, env={"PYTHONPATH": ":".join(sys.path)})
    async with Client(stdio_client(server)) as client:
        told = (await client.call_tool("answer", {"question": QUESTION})).structured_content
    assert "Lloyd" in told["answer"]
