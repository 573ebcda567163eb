"""The retriever as a tool of an agent."""

from llama_index.core.tools import FunctionTool

import compmem
from compmem.listing import BLANK, DESCRIPTION
from llama_index_compmem.nodes import llm_content
from llama_index_compmem.retriever import CompMemRetriever


def recall_tool(
    retriever: CompMemRetriever,
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
    if not isinstance(retriever, CompMemRetriever):
        raise TypeError(f"there must be a CompMemRetriever (index.as_retriever()), not {type(retriever).__name__}")
    listing = compmem.Listing(skip_seen=skip_seen, render=llm_content)

    def search(query: str) -> str:
        if not query.strip():
            return BLANK
        k = retriever.similarity_top_k
        return listing.show(retriever.recall(query, listing.wanted(k)), k)[0]

    async def asearch(query: str) -> str:
        if not query.strip():
            return BLANK
        k = retriever.similarity_top_k
        return listing.show(await retriever.arecall(query, listing.wanted(k)), k)[0]

    return FunctionTool.from_defaults(search, name=name, description=description, async_fn=asearch)
