"""The retriever: CompMem's recall behind LlamaIndex's `BaseRetriever`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.schema import IndexNode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

from compmem import Encoder, Recall, RecallConfig, RecallMethod, Step
from compmem.checks import check_fraction, check_integer
from compmem.config import DEFAULT_CANDIDATES
from llama_index_compmem.errors import framework_errors
from llama_index_compmem.events import announce
from llama_index_compmem.external import external_index
from llama_index_compmem.filters import to_filter
from llama_index_compmem.loading import HasMemory, index_behind, recall_config_of, resolve_index
from llama_index_compmem.nodes import to_scored

if TYPE_CHECKING:
    from compmem import BaseIndex

DEFAULT_TOP_K = 8
"""Default number of nodes: a multi-hop question needs several."""


class CompMemRetriever(BaseRetriever):
    """Retrieves the nodes that a question needs, each with the gate's probability as its score.

    The loop finds nodes by what other nodes say, so a result may share no word with the question. Nodes are returned
    whole, with their ids, metadata and relationships. Only the text of a query bundle is used; a vector in it comes
    from another model and is ignored. A score is a probability, not a cosine: right nodes often score well below 0.5,
    so use a `SimilarityPostprocessor` with a cutoff near 0.1, not 0.7.

    Args:
        index: A `CompMemIndex`, a `compmem.MemoryIndex` or `compmem.ExternalIndex`, or the folder of an index.
        similarity_top_k: Number of nodes; fewer only if the filters or `min_score` admit fewer.
        filters: Which nodes may be recalled.
        method: `"loop"`, or one pass: `"gate"`, `"hybrid"`, `"dense"` or `"bm25"`, as in `MemoryIndex.search`.
        min_score: Nodes with a lower score are left out. From `memory.gate.threshold` on, the loop reads a node.
        recall_config: Settings of the loop, such as `RecallConfig(max_seconds=2)` for a timeout. Its `threshold` says
            what the loop reads and leaves out no result, as `min_score` does.
        callback_manager: Legacy callbacks.
        object_map: Objects that retrieved `IndexNode`s refer to, by index id.
        objects: The same, as `IndexNode`s with their objects.
        verbose: Print when retrieval enters such an object.

    Raises:
        TypeError: The filters are of another type.
        ValueError: There is no index, an operator or value of a filter is unknown, similarity_top_k is negative, or
            min_score is not between 0 and 1.
    """

    def __init__(
        self,
        index: "HasMemory | BaseIndex | str | Path",
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | MetadataFilter | None = None,
        *,
        method: RecallMethod = "loop",
        min_score: float = 0.0,
        recall_config: RecallConfig | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        objects: list[IndexNode] | None = None,
        verbose: bool = False,
    ) -> None:
        self._memory = resolve_index(index)
        self.similarity_top_k = similarity_top_k
        self._filter = to_filter(filters)
        # a chat model that it names is not used here
        self._recall_config = recall_config or recall_config_of(index) or RecallConfig()
        self._method = method
        check_fraction("min_score", min_score)
        self._min_score = min_score
        super().__init__(callback_manager, object_map, objects, verbose)

    @classmethod
    def from_retriever(
        cls,
        retriever: BaseRetriever,
        similarity_top_k: int = DEFAULT_TOP_K,
        *,
        embed_model: BaseEmbedding | Encoder | None = None,
        candidates: int = DEFAULT_CANDIDATES,
        use_async: bool = True,
        **options: Any,
    ) -> Self:
        """A retriever over another one: the loop queries it again with what was found, and nothing is indexed.

        Args:
            retriever: Returns nodes, with its own filters: `index.as_retriever(filters=...)`.
            similarity_top_k: Number of nodes.
            embed_model: Encodes sentences. None: CompMem's own encoder, whatever the store uses.
            candidates: Nodes to request for a question, if the retriever has a `similarity_top_k`.
            use_async: Await the retriever in an event loop, if it has its own async method. False: call it in a thread,
                for stores without an async client.
            **options: Other arguments of the retriever.

        Raises:
            ValueError: It is not a retriever or is one over a CompMem index, or candidates is below 1.
        """
        index = external_index(retriever, embed_model=embed_model, candidates=candidates, use_async=use_async)
        return cls(index, similarity_top_k, **options)

    @property
    def memory(self) -> "BaseIndex":
        """The index."""
        return self._memory

    @property
    def similarity_top_k(self) -> int:
        """Number of nodes."""
        return self._top_k

    @similarity_top_k.setter
    def similarity_top_k(self, value: int) -> None:
        check_integer("similarity_top_k", value, 0)
        self._top_k = value

    def recall(self, query: str, k: int | None = None) -> list[Recall]:
        """The chunks of the nodes for a question, best first; k is `similarity_top_k` by default.

        Raises:
            ValueError: The question is empty or too long.
        """
        arguments = self._recall_arguments(query, k)
        with framework_errors():
            return self._memory.recall(query, **arguments) if arguments["k"] else []

    async def arecall(self, query: str, k: int | None = None) -> list[Recall]:
        """`recall` for an event loop, without blocking it."""
        arguments = self._recall_arguments(query, k)
        with framework_errors():
            return await self._memory.arecall(query, **arguments) if arguments["k"] else []

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return to_scored(self.recall(query_bundle.query_str))

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return to_scored(await self.arecall(query_bundle.query_str))

    def _retrieve_from_object(self, obj: Any, query_bundle: QueryBundle, score: float) -> list[NodeWithScore]:
        return _without_sources(obj, super()._retrieve_from_object(obj, query_bundle, score))

    async def _aretrieve_from_object(self, obj: Any, query_bundle: QueryBundle, score: float) -> list[NodeWithScore]:
        return _without_sources(obj, await super()._aretrieve_from_object(obj, query_bundle, score))

    def _recall_arguments(self, query: str, k: int | None) -> dict[str, Any]:
        def announce_step(step: Step) -> None:
            announce(query, step, self.callback_manager)

        return {
            "k": self._top_k if k is None else k, "method": self._method, "min_score": self._min_score,
            "filter": self._filter, "config": self._recall_config, "on_step": announce_step,
        }  # fmt: skip


def _without_sources(obj: object, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
    """The nodes; of an answer of a CompMem engine, the metadata of its sources is neither searched nor shown."""
    if isinstance(obj, BaseQueryEngine) and index_behind(obj) is not None:
        for found in nodes:
            if isinstance(found.node, TextNode):
                found.node.excluded_embed_metadata_keys = found.node.excluded_llm_metadata_keys = [*found.node.metadata]
    return nodes
