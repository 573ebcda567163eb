"""The retriever as a tool of an agent."""

from collections.abc import Sequence

from llama_index.core.schema import MetadataMode, NodeWithScore
from llama_index.core.tools import FunctionTool

import compmem
from compmem import Chunk, Recall
from compmem.listing import BLANK, DESCRIPTION
from llama_index_compmem.nodes import llm_content, node_ids, to_bare_document
from llama_index_compmem.retriever import CompMemRetriever


def recall_tool(
    retriever: CompMemRetriever,
    *,
    name: str = "search_documents",
    description: str = DESCRIPTION,
    skip_seen: bool = False,
) -> FunctionTool:
    """A tool that gives an agent the retriever's results as compact numbered text; its `raw_output` is the nodes.

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

    def listed(search: _RecordingRetriever, found: Sequence[NodeWithScore]) -> _ListedNodes:
        recalls = dict(zip(node_ids(search.recalls), search.recalls, strict=True))
        entries = [(recalls.get(n.node.node_id) or _of_object(n), n) for n in found]
        nodes = {recall.chunk.id: node for recall, node in entries}
        text, shown = listing.show([recall for recall, _ in entries], retriever.similarity_top_k)
        return _ListedNodes(text, [nodes[recall.chunk.id] for recall in shown])

    def search(query: str) -> _ListedNodes:
        if not query.strip():
            return _ListedNodes(BLANK)
        asked = _RecordingRetriever(retriever, listing.wanted(retriever.similarity_top_k))
        return listed(asked, asked.retrieve(query))

    async def asearch(query: str) -> _ListedNodes:
        if not query.strip():
            return _ListedNodes(BLANK)
        asked = _RecordingRetriever(retriever, listing.wanted(retriever.similarity_top_k))
        return listed(asked, await asked.aretrieve(query))

    return FunctionTool.from_defaults(search, name=name, description=description, async_fn=asearch, callback=str)


class _ListedNodes(list[NodeWithScore]):
    """Nodes, and as their text the listing that the agent reads."""

    def __init__(self, text: str, nodes: Sequence[NodeWithScore] = ()) -> None:
        super().__init__(nodes)
        self.text = text

    def __str__(self) -> str:
        return self.text


class _RecordingRetriever(CompMemRetriever):
    """The retriever for one call of the tool; it keeps what was recalled, which has the titles and headings."""

    def __init__(self, retriever: CompMemRetriever, k: int) -> None:
        super().__init__(
            retriever.memory,
            k,
            callback_manager=retriever.callback_manager,
            object_map=retriever.object_map,
            verbose=retriever._verbose,
        )
        self._retriever = retriever
        self.recalls: list[Recall] = []

    def recall(self, query: str, k: int | None = None) -> list[Recall]:
        self.recalls = self._retriever.recall(query, self.similarity_top_k if k is None else k)
        return self.recalls

    async def arecall(self, query: str, k: int | None = None) -> list[Recall]:
        self.recalls = await self._retriever.arecall(query, self.similarity_top_k if k is None else k)
        return self.recalls


def _of_object(found: NodeWithScore) -> Recall:
    """A node that came from an object which a recalled node refers to."""
    text, title = found.node.get_content(metadata_mode=MetadataMode.LLM), to_bare_document(found.node).title
    return Recall(
        chunk=Chunk(text=text, title=title, document_id=found.node.node_id), score=found.score or 0.0, block=-1
    )
