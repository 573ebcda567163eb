"""The retriever: CompMem's recall behind LlamaIndex's `BaseRetriever`."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle
from llama_index.core.vector_stores.types import MetadataFilters

from compmem import Encoder, Recall, RecallConfig, RecallMethod, Step
from llama_index_compmem.errors import framework_errors
from llama_index_compmem.events import announce
from llama_index_compmem.external import CANDIDATES, external_index
from llama_index_compmem.filters import to_filter
from llama_index_compmem.loading import HasMemory, resolve_index
from llama_index_compmem.nodes import to_scored

if TYPE_CHECKING:
    from compmem import BaseIndex

DEFAULT_TOP_K = 8
"""Nodes retrieved unless said otherwise: a multi-hop question needs several."""


class CompMemRetriever(BaseRetriever):
    """Retrieves the nodes that a question needs, each with the gate's probability as its score.

    The loop gathers them: what one node says leads to the next, so a node may be here that shares no word with the
    question. Nodes come back whole, with their ids, metadata and relationships. Asked with the text of a query bundle;
    a vector in it, made by another model, is not looked at. A score is a probability, not a cosine: right nodes often
    score well below 0.5, so a `SimilarityPostprocessor` wants a cutoff near 0.1, not 0.7.

    Args:
        index: A `CompMemIndex`, a `compmem.MemoryIndex` or `compmem.ExternalIndex`, or the folder of an index.
        similarity_top_k: How many nodes; fewer only where the filters admit fewer.
        filters: Which nodes may be looked at at all.
        method: `"loop"`, or one pass: `"gate"`, `"hybrid"`, `"dense"` or `"bm25"`, as of `MemoryIndex.search`.
        recall_config: Settings of the loop, such as `RecallConfig(max_seconds=2)` for a timeout.
        callback_manager: Legacy callbacks.
        object_map: Objects that retrieved `IndexNode`s stand for, by index id.
        objects: The same, as `IndexNode`s that hold their object.
        verbose: Print when retrieval enters such an object.

    Raises:
        ValueError: There is no index, an operator or value of a filter is unknown, or similarity_top_k is negative.
    """

    def __init__(
        self,
        index: "HasMemory | BaseIndex | str | Path",
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | None = None,
        *,
        method: RecallMethod = "loop",
        recall_config: RecallConfig | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        self._memory = resolve_index(index)
        self.similarity_top_k = similarity_top_k
        self._filter = to_filter(filters)
        recall_config = recall_config or RecallConfig()
        # These may be the settings of an engine, whose chat model is not here.
        self._recall_config = recall_config.replace(reader=None) if recall_config.reader == "chat" else recall_config
        self._method = method
        super().__init__(callback_manager, object_map, objects, verbose)

    @classmethod
    def from_retriever(
        cls,
        retriever: BaseRetriever,
        similarity_top_k: int = DEFAULT_TOP_K,
        *,
        embed_model: BaseEmbedding | Encoder | None = None,
        candidates: int = CANDIDATES,
        use_async: bool = True,
        **options: Any,
    ) -> Self:
        """A retriever over another one: the loop asks it again with what was found, and nothing is indexed.

        Args:
            retriever: What brings nodes, with its own filters: `index.as_retriever(filters=...)`.
            similarity_top_k: How many nodes come back.
            embed_model: What encodes sentences. None: CompMem's own encoder, whatever the store uses.
            candidates: Nodes that it is asked for by a question, where it has a `similarity_top_k`.
            use_async: Await the retriever in an event loop, if it has an async method of its own. False: a thread asks
                it, for stores without an async client.
            **options: Other arguments of the retriever.

        Raises:
            ValueError: It is no retriever, or candidates is below 1.
        """
        index = external_index(retriever, embed_model=embed_model, candidates=candidates, use_async=use_async)
        return cls(index, similarity_top_k, **options)

    @property
    def memory(self) -> "BaseIndex":
        """What is asked."""
        return self._memory

    @property
    def similarity_top_k(self) -> int:
        """How many nodes are retrieved."""
        return self._top_k

    @similarity_top_k.setter
    def similarity_top_k(self, value: int) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"similarity_top_k={value!r} must be a whole number of at least 0")
        self._top_k = value

    def recall(self, query: str, k: int | None = None) -> list[Recall]:
        """The chunks of the nodes that come back for a question, best first; k is `similarity_top_k` unless given.

        Raises:
            ValueError: The question is empty or overlong.
        """
        k = self._top_k if k is None else k
        if not k:
            return []
        with framework_errors():
            return self._memory.recall(
                query,
                k,
                method=self._method,
                filter=self._filter,
                config=self._recall_config,
                on_step=self._announcer(query),
            )

    async def arecall(self, query: str, k: int | None = None) -> list[Recall]:
        """`recall` for an event loop, which is never blocked."""
        k = self._top_k if k is None else k
        if not k:
            return []
        with framework_errors():
            return await self._memory.arecall(
                query,
                k,
                method=self._method,
                filter=self._filter,
                config=self._recall_config,
                on_step=self._announcer(query),
            )

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return to_scored(self.recall(query_bundle.query_str))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return to_scored(await self.arecall(query_bundle.query_str))

    def _announcer(self, query: str) -> Callable[[Step], None]:
        def tell(step: Step) -> None:
            announce(query, step, self.callback_manager)

        return tell
