"""The retriever as a tool of an agent."""

from typing import TYPE_CHECKING, Final

from langchain_core.documents import Document
from langchain_core.tools import BaseTool, StructuredTool

import compmem
from langchain_compmem.documents import from_recalls

if TYPE_CHECKING:
    from langchain_compmem.retriever import CompMemRetriever

DESCRIPTION: Final = "Searches the documents. Ask in a whole sentence, with full names; ask again for what is missing."


def recall_tool(
    retriever: "CompMemRetriever",
    *,
    name: str = "search_documents",
    description: str = DESCRIPTION,
    skip_seen: bool = False,
) -> BaseTool:
    """A tool that gives an agent the retriever's results as compact numbered text; its artifact is the documents.

    Numbers stay the same in all calls of one tool, so an answer may cite them. Make one tool for each conversation.

    Args:
        retriever: The retriever, with its own `k` and `filter`.
        name: The tool's name.
        description: When the agent should call it.
        skip_seen: Documents that an earlier call showed are replaced by other ones; only their numbers are listed.
    """
    listing = compmem.Listing(skip_seen=skip_seen)

    def listed(recalls: list["compmem.Recall"]) -> tuple[str, list[Document]]:
        text, shown = listing.show(recalls, retriever.k)
        return text, from_recalls(retriever.index, shown)

    def search(query: str) -> tuple[str, list[Document]]:
        return listed(retriever.recall(query, listing.wanted(retriever.k)))

    async def asearch(query: str) -> tuple[str, list[Document]]:
        return listed(await retriever.arecall(query, listing.wanted(retriever.k)))

    return StructuredTool.from_function(
        search, asearch, name=name, description=description, response_format="content_and_artifact"
    )
