"""The retriever as a tool of an agent."""

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.documents import Document
from langchain_core.tools import BaseTool, StructuredTool, ToolException

import compmem
from compmem.listing import BLANK, DESCRIPTION
from langchain_compmem.retriever import CompMemRetriever


def recall_tool(
    retriever: CompMemRetriever,
    *,
    name: str = "search_documents",
    description: str = DESCRIPTION,
    skip_seen: bool = False,
) -> BaseTool:
    """A tool that gives an agent the retriever's results as compact numbered text; its artifact is the documents.

    In a trace, the retriever runs under the tool. Numbers stay the same in all calls of one tool, so an answer may cite
    them. Make one tool for each conversation. A query that is blank or too long is not searched for: the agent gets a
    message with the status `error`, and may ask again.

    Args:
        retriever: The retriever, with its own `k` and `filter`.
        name: The tool's name.
        description: When the agent should call it.
        skip_seen: Documents that an earlier call showed are replaced by other ones; only their numbers are listed.

    Raises:
        TypeError: It is no `CompMemRetriever`.
    """
    if not isinstance(retriever, CompMemRetriever):
        raise TypeError(f"retriever must be a CompMemRetriever, not {type(retriever).__name__}")
    listing = compmem.Listing(skip_seen=skip_seen)

    def listed(recalls: list["compmem.Recall"], found: list[Document]) -> tuple[str, list[Document]]:
        text, shown = listing.show(recalls, retriever.k)
        documents = {recall.chunk.id: document for recall, document in zip(recalls, found, strict=True)}
        return text, [documents[recall.chunk.id] for recall in shown]

    def search(query: str) -> tuple[str, list[Document]]:  # the tool's run is in the context, so it is the parent
        recalls = list["compmem.Recall"]()
        with errors_for_agent(query):
            return listed(recalls, retriever.invoke(query, k=listing.wanted(retriever.k), recalls=recalls))

    async def asearch(query: str) -> tuple[str, list[Document]]:
        recalls = list["compmem.Recall"]()
        with errors_for_agent(query):
            return listed(recalls, await retriever.ainvoke(query, k=listing.wanted(retriever.k), recalls=recalls))

    return StructuredTool.from_function(
        search,
        asearch,
        name=name,
        description=description,
        response_format="content_and_artifact",
        handle_tool_error=True,
    )


@contextmanager
def errors_for_agent(question: object) -> Iterator[None]:
    """Wraps the search for an agent's question.

    Raises:
        ToolException: The question is blank, or an argument is refused; a tool with `handle_tool_error` tells the agent
            so.
    """
    if isinstance(question, str) and not question.strip():
        raise ToolException(BLANK)
    try:
        yield
    except ValueError as error:
        raise ToolException(str(error)) from error
