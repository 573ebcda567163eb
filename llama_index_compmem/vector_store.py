"""The vector store: the framework's pipelines and indices write to a CompMem index with it and query it."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.embeddings.mock_embed_model import MockEmbedding
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)

from compmem import Recall, RecallConfig
from llama_index_compmem.errors import framework_errors
from llama_index_compmem.filters import to_filter
from llama_index_compmem.loading import HasMemory, memory_of, open_or_create
from llama_index_compmem.nodes import (
    NODE_ID_KEY,
    NODE_KEY,
    REF_DOC_KEY,
    ids_of_ref_docs,
    node_ids,
    to_documents,
    to_node,
    to_scored,
)

if TYPE_CHECKING:
    from compmem import MemoryIndex

logger = logging.getLogger(__name__)

_MODES = (
    VectorStoreQueryMode.DEFAULT,
    VectorStoreQueryMode.SPARSE,
    VectorStoreQueryMode.HYBRID,
    VectorStoreQueryMode.TEXT_SEARCH,
    VectorStoreQueryMode.SEMANTIC_HYBRID,
)


class CompMemVectorStore(BasePydanticVectorStore):
    """A CompMem index as a vector store.

    `IngestionPipeline(vector_store=store, docstore=...)` keeps it up to date, and
    `VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model)` queries it, always with the question's
    text. The index computes its own vectors of whole nodes and of every sentence; embeddings of nodes are not used. The
    framework passes only nodes with an embedding to a vector store, so use `store.embed_model`, which costs nothing, as
    the pipeline's last transformation.

    Args:
        index: A `CompMemIndex`, a `compmem.MemoryIndex`, or the path of its folder. The index is created if the folder
            does not exist or is empty.
        recall_config: Settings of the loop.

    Raises:
        ValueError: The index cannot be opened or created.
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    path: str | None = None
    """Folder of the index; None: a temporary one."""

    _memory: Any = PrivateAttr()
    _recall_config: RecallConfig | None = PrivateAttr()

    def __init__(
        self, index: "HasMemory | MemoryIndex | str | Path", *, recall_config: RecallConfig | None = None
    ) -> None:
        memory = open_or_create(index) if isinstance(index, str | Path) else memory_of(index)
        super().__init__(stores_text=True)
        self.path = None if memory.temporary else str(memory.path)
        self._memory = memory
        self._recall_config = recall_config

    @classmethod
    def from_dict(cls, data: dict[str, Any], **kwargs: Any) -> Self:
        """A vector store over the same folder, from the result of `to_dict`.

        Args:
            data: The result of `to_dict`.
            **kwargs: `recall_config`, which is not in `data`; `index`, to be used instead of opening the folder.

        Raises:
            ValueError: The index was temporary and none is given, or it cannot be opened.
        """
        index = kwargs.pop("index", data.get("path"))
        if index is None:
            raise ValueError("the index behind this vector store was temporary: give it a folder, or pass index=")
        return cls(index, **kwargs)

    @classmethod
    def class_name(cls) -> str:
        """Name of the class for the framework."""
        return "CompMemVectorStore"

    @property
    def client(self) -> "MemoryIndex":
        """The CompMem index."""
        return self.memory

    @property
    def memory(self) -> "MemoryIndex":
        """The CompMem index."""
        memory: MemoryIndex = self._memory
        return memory

    @property
    def recall_config(self) -> RecallConfig | None:
        """Settings of the loop for what is made from this store and has none of its own."""
        return self._recall_config

    @property
    def embed_model(self) -> MockEmbedding:
        """A placeholder for an embedding model: it gives every node one number, so that the framework passes it on."""
        return MockEmbedding(embed_dim=1)

    # Writing

    def add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """Adds nodes, replacing those with the same ids; returns the ids of those with text; others are left out.

        Raises:
            ValueError: A node's metadata is not JSON or has a key that is reserved for CompMem, or the index is locked.
        """
        documents = {document.id: document for document in to_documents(nodes)}
        with framework_errors():
            self.memory.add(list(documents.values()))
        return [node.node_id for node in nodes if node.node_id in documents]

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """`add` for an event loop."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Deletes the nodes of a document; an unknown id is ignored."""
        with framework_errors():
            self.memory.delete(ids_of_ref_docs(self.memory, [ref_doc_id])[ref_doc_id])

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """`delete` for an event loop."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    def delete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """Deletes the nodes with these ids that the filters admit. Neither given: none.

        Raises:
            ValueError: An operator or value of a filter is unknown, or a node is a part of a document that was added
                without the framework, which can only be deleted as a whole.
        """
        if node_ids is None and filters is None:
            return
        with framework_errors():
            for name in node_ids or ():
                if (whole := _document_id(name)) == name or self.memory.metadata(name) is not None:
                    continue
                if (about := self.memory.metadata(whole)) is not None and NODE_KEY not in about:
                    raise ValueError(f"node {name!r} is a part of a document: delete it with delete({whole!r})")
            self.memory.delete(self._document_ids(node_ids, filters))

    async def adelete_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None, **delete_kwargs: Any
    ) -> None:
        """`delete_nodes` for an event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    def clear(self) -> None:
        """Deletes everything in the index."""
        with framework_errors():
            self.memory.delete([document.id for document in self.memory.documents()])

    async def aclear(self) -> None:
        """`clear` for an event loop."""
        await asyncio.to_thread(self.clear)

    def persist(self, persist_path: str, fs: Any | None = None) -> None:
        """Does nothing: added nodes are in the index's own folder at once."""
        if self.memory.temporary:
            logger.warning("the index behind this vector store is temporary and is not persisted: give it a folder")

    # Reading and querying

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """The nodes with these ids that the filters admit. Neither given: all.

        Raises:
            ValueError: An operator or value of a filter is unknown, or a node cannot be read.
        """
        with framework_errors():
            wanted = None if node_ids is None else [*node_ids, *map(_document_id, node_ids)]
            chunks = [chunk for found in self._document_ids(wanted, filters) for chunk in self.memory.chunks(found)]
            nodes = [(chunk.document_id, to_node(chunk)) for chunk in chunks]
        asked = set(node_ids or ())
        return [node for name, node in nodes if node_ids is None or not asked.isdisjoint((name, node.node_id))]

    async def aget_nodes(
        self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None
    ) -> list[BaseNode]:
        """`get_nodes` for an event loop."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The nodes that the question needs, best first, with the gate's probability as their similarity.

        A blank question, as in auto-retrieval, gives nodes that the filters admit, in their order, with similarity 0.

        Raises:
            ValueError: The query has no text, or a mode or filter that is not supported.
        """
        wanted, k, question = _filter_of(query), query.similarity_top_k, _question(query)
        if k < 1:
            return _result([])
        with framework_errors():
            if not question.strip():
                return self._admitted(wanted, k)
            return _result(self.memory.recall(question, k, filter=wanted, config=self._recall_config))

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """`query` for an event loop."""
        wanted, k, question = _filter_of(query), query.similarity_top_k, _question(query)
        if k < 1:
            return _result([])
        with framework_errors():
            if not question.strip():
                return await asyncio.to_thread(self._admitted, wanted, k)
            return _result(await self.memory.arecall(question, k, filter=wanted, config=self._recall_config))

    def _admitted(self, wanted: dict[str, Any] | None, k: int) -> VectorStoreQueryResult:
        """The first k nodes that a filter admits."""
        found = [
            chunk for document in self.memory.documents(wanted, limit=k) for chunk in self.memory.chunks(document.id)
        ]
        nodes = [to_node(chunk) for chunk in found[:k]]
        return VectorStoreQueryResult(nodes=nodes, similarities=[0.0] * len(nodes), ids=[n.node_id for n in nodes])

    def _document_ids(self, node_ids: list[str] | None, filters: MetadataFilters | None) -> list[str]:
        """Ids of the documents in the index that contain these nodes."""
        wanted = to_filter(filters)
        if node_ids is None or wanted is not None:
            admitted = [document.id for document in self.memory.documents(wanted)]
            chosen = set(admitted if node_ids is None else node_ids)
            return [found for found in admitted if found in chosen]
        return list(dict.fromkeys(node_ids))


def _document_id(node_id: str) -> str:
    """The id of the document whose chunk has this id, or else the id itself."""
    document_id, _, ordinal = node_id.rpartition("#")
    return document_id if ordinal.isdecimal() else node_id


def _question(query: VectorStoreQuery) -> str:
    if query.query_str is None:
        raise ValueError("a CompMem vector store is queried by text, but the query has no query_str")
    return query.query_str


def _filter_of(query: VectorStoreQuery) -> dict[str, Any] | None:
    if query.mode not in _MODES:
        raise ValueError(f"query mode {query.mode!r} is not supported; supported are {[mode.value for mode in _MODES]}")
    parts = [to_filter(query.filters)]
    parts += [
        {key: {"in": list(ids)}} for key, ids in ((REF_DOC_KEY, query.doc_ids), (NODE_ID_KEY, query.node_ids)) if ids
    ]
    given = [part for part in parts if part is not None]
    return {"and": given} if given else None


def _result(recalls: Sequence[Recall]) -> VectorStoreQueryResult:
    scored = to_scored(recalls)
    return VectorStoreQueryResult(
        nodes=[s.node for s in scored], similarities=[s.score or 0.0 for s in scored], ids=node_ids(recalls)
    )
