"""An index as tools of the Model Context Protocol, with the official SDK."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Unpack

try:
    from mcp.server.mcpserver import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.server.mcpserver.tools import Tool
    from mcp_types import ToolAnnotations
    from pydantic import BaseModel, ConfigDict, Field
except ImportError as error:
    raise ImportError('the MCP server needs packages that are not installed: pip install "compmem[mcp]"') from error

from compmem import __version__
from compmem.as_json import answer_json, document_json, recall_json
from compmem.config import RecallConfig
from compmem.errors import CompMemError, StoreError, StoreLockedError
from compmem.index import MemoryIndex
from compmem.schema import AnswerModels, Document
from compmem.serving.limits import BusyError, Limits
from compmem.threads import in_thread

logger = logging.getLogger(__name__)

_INSTRUCTIONS = (
    "Contains documents and answers questions from them, also questions that need facts from several documents."
)
_ANSWER_FIELDS = ("answer", "found", "sources", "stop_reason")

Question = Annotated[str, Field(description="A whole question in words, not keywords.", max_length=4000)]
Filter = Annotated[
    dict[str, Any] | None, Field(description='Only documents with this metadata, as in {"year": {">=": 2020}}.')
]


class NewDocument(BaseModel):
    """A document to add."""

    model_config = ConfigDict(extra="forbid")

    text: str
    id: str = Field("", description="An id of your choice; an existing document with it is replaced. Default: a hash.")
    title: str = Field("", description="Title, in a few words.")
    context: str = Field("", description="Facts that questions may ask by, such as the author, one per line.")
    metadata: dict[str, Any] = Field({}, description="JSON values by name, for filters.")

    def characters(self) -> int:
        """Of all fields together, the metadata as JSON."""
        metadata = json.dumps(self.metadata) if self.metadata else ""
        return sum(map(len, (self.text, self.id, self.title, self.context, metadata)))


def create_tools(
    index: MemoryIndex,
    *,
    config: RecallConfig | None = None,
    limits: Limits | None = None,
    read_only: bool = False,
    **models: Unpack[AnswerModels],
) -> MCPServer[Any]:
    """The MCP server: the tools `recall`, `answer`, `list_documents` and, unless it is read-only, `add_documents`.

    Args:
        index: The index to query. The caller closes it.
        config: How questions are answered.
        limits: Limits of a call, and of the calls at work at once.
        read_only: Offer no tool that changes the index.
        **models: Models that read and write answers; see `AnswerModels`.
    """
    limits = limits or Limits()
    config = limits.with_time_limit(config or RecallConfig())
    question_limiter, write_limiter = limits.limiter(limits.at_once), limits.limiter(1)
    reading = ToolAnnotations(read_only_hint=True, open_world_hint=False)

    async def recall(
        question: Question,
        k: Annotated[int, Field(description="Most passages.", ge=1, le=limits.k)] = 8,
        filter: Filter = None,
    ) -> dict[str, Any]:
        """Find the passages that a question needs, best first, including those that only another passage leads to."""
        async with _tool_errors(), question_limiter.slot():
            found = await index.arecall(question, k, filter=filter, config=config)
            return {"recalls": [recall_json(each) for each in found]}

    async def answer(question: Question, filter: Filter = None) -> dict[str, Any]:
        """Answer a question from the documents, with the passages that the answer is based on."""
        async with _tool_errors(), question_limiter.slot():
            whole = answer_json(await index.aanswer(question, config, filter=filter, **models))
            return {name: whole[name] for name in _ANSWER_FIELDS}

    async def list_documents(
        filter: Filter = None, offset: Annotated[int, Field(description="How many documents to skip.", ge=0)] = 0
    ) -> dict[str, Any]:
        """List the documents without their texts, one page at a time."""
        async with _tool_errors(), question_limiter.slot():
            page = await in_thread(partial(index.documents, filter, offset=offset, limit=limits.documents))
            total = await in_thread(index.count_documents, filter)
            return {"documents": list(map(document_json, page)), "total": total}

    async def add_documents(
        documents: Annotated[list[NewDocument], Field(min_length=1, max_length=limits.documents)],
    ) -> dict[str, Any]:
        """Add documents to the index; one with a known id replaces the old document."""
        if sum(d.characters() for d in documents) > limits.body_bytes:
            raise ToolError(f"the documents have more than {limits.body_bytes} characters: add fewer at a time")
        async with _tool_errors(), write_limiter.slot():
            made = [Document(**dict(d)) for d in documents]
            added = await in_thread(index.add, made)
            return {"added": added, "unchanged": len(made) - added, "ids": [d.id for d in made]}

    mcp_tools = [_tool(each, reading) for each in (recall, answer, list_documents)]
    if not read_only:
        changing = ToolAnnotations(read_only_hint=False, idempotent_hint=True, open_world_hint=False)
        mcp_tools.append(_tool(add_documents, changing))
    return MCPServer("compmem", instructions=_INSTRUCTIONS, version=__version__, tools=mcp_tools, log_level="WARNING")


def _tool(function: Callable[..., Any], annotations: ToolAnnotations) -> Tool:
    """A tool that refuses unknown arguments and does not convert types; the SDK has no setting for this."""
    made = Tool.from_function(function, annotations=annotations)
    given = made.fn_metadata.arg_model
    strict: Any = type(given.__name__, (given,), {"model_config": ConfigDict(extra="forbid", strict=True)})
    made.fn_metadata.arg_model = strict
    made.parameters = strict.model_json_schema(by_alias=True)
    return made


@asynccontextmanager
async def _tool_errors() -> AsyncIterator[None]:
    """Limits what a model learns about a failure: a wrong argument, or an error message of this library."""
    try:
        yield
    except (BusyError, StoreLockedError) as error:
        raise ToolError("the server is busy: try again later") from error
    except StoreError as error:  # its message has the path of the index
        logger.exception("the index cannot be read")
        raise ToolError("the index cannot be read; see the log") from error
    except (ValueError, CompMemError) as error:
        raise ToolError(str(error)) from error
