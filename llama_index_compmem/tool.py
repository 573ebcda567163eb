"""The retriever as a tool of an agent."""

from typing import TYPE_CHECKING, Final

from llama_index.core.tools import FunctionTool

import compmem
from llama_index_compmem.nodes import llm_content

if TYPE_CHECKING:
    from llama_index_compmem.retriever import CompMemRetriever

DESCRIPTION: Final = "Searches the documents. Ask in a whole sentence, with full names; ask again for what is missing."


def recall_tool(
    retriever: "CompMemRetriever",
    *,
    name: str = "search_documents",
    description: str = DESCRIPTION,
    skip_seen: bool = False,
) -> FunctionTool:
    """A tool that gives an agent the retriever's results as compact numbered text.

    Numbers stay the same in all calls of one tool, so an answer may cite them. Make one tool for each conversation.

    Args:
        retriever: The retriever, with its own `similarity_top_k` and filters.
        name: The tool's name.
        description: When the agent should call it.
        skip_seen: Nodes that an earlier call showed are replaced by other ones; only their numbers are listed.

    Raises:
        TypeError: It is not a `CompMemRetriever`.
    """
    if not hasattr(retriever, "similarity_top_k"):
        raise TypeError(f"there must be a CompMemRetriever (index.as_retriever()), not {type(retriever).__name__}")
    listing = compmem.Listing(skip_seen=skip_seen, render=llm_content)

    def search(query: str) -> str:
        k = retriever.similarity_top_k
        return listing.show(retriever.recall(query, listing.wanted(k)), k)[0]

    async def asearch(query: str) -> str:
        k = retriever.similarity_top_k
        return listing.show(await retriever.arecall(query, listing.wanted(k)), k)[0]

    return FunctionTool.from_defaults(search, name=name, description=description, async_fn=asearch)
