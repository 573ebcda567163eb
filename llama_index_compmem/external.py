"""A retriever of LlamaIndex, and so any of its vector stores, as the first stage of the loop."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.schema import NodeWithScore

import compmem
from compmem import Document, Encoder
from compmem.config import DEFAULT_CANDIDATES
from llama_index_compmem.loading import as_encoder, index_behind
from llama_index_compmem.nodes import to_wrapped_document

if TYPE_CHECKING:
    from compmem import ExternalIndex


def external_index(
    retriever: BaseRetriever,
    *,
    embed_model: BaseEmbedding | Encoder | None = None,
    candidates: int = DEFAULT_CANDIDATES,
    use_async: bool = True,
) -> "ExternalIndex":
    """An index over this retriever; each of its nodes is one chunk.

    Args:
        retriever: Returns nodes, with its own filters and mode.
        embed_model: Encodes sentences. None: CompMem's own encoder, whatever the store uses.
        candidates: Nodes to request for a question, if the retriever has a `similarity_top_k`.
        use_async: Await the retriever in an event loop, if it has its own async method. False: call it in a thread, for
            stores without an async client.

    Raises:
        ValueError: It is not a retriever or is one over a CompMem index, or candidates is below 1.
    """
    if not isinstance(retriever, BaseRetriever):
        raise ValueError(
            f"retriever must be a BaseRetriever of LlamaIndex, not {type(retriever).__name__}: an index of the "
            "framework has .as_retriever(), a vector store VectorStoreIndex.from_vector_store(...).as_retriever()"
        )
    encoder = as_encoder(embed_model)
    if index_behind(retriever) is not None:
        raise ValueError(
            f"this {type(retriever).__name__} already asks a CompMem index: give that index itself, with filters= and "
            "other settings, such as CompMemIndex.as_query_engine(filters=...)"
        )
    options: dict[str, Any] = {} if encoder is None else {"encoder": encoder}

    wrapped = _RetrieverFunctions(retriever)
    own_async = type(retriever)._aretrieve is not BaseRetriever._aretrieve
    awaited = wrapped.aretrieve if use_async and own_async else None
    return compmem.ExternalIndex(wrapped.retrieve, aretrieve=awaited, candidates=candidates, **options)


@dataclass(frozen=True)
class _RetrieverFunctions:
    """The functions of an `ExternalIndex`, for a retriever."""

    retriever: BaseRetriever

    def retrieve(self, query: str, k: int, filter: Any) -> list[Document]:
        _check_no_filter(filter)
        return _documents(self._with_top_k(k).retrieve(query))

    async def aretrieve(self, query: str, k: int, filter: Any) -> list[Document]:
        _check_no_filter(filter)
        return _documents(await self._with_top_k(k).aretrieve(query))

    def _with_top_k(self, k: int) -> BaseRetriever:
        sized: Any = copy.copy(self.retriever)
        if hasattr(sized, "similarity_top_k"):
            sized.similarity_top_k = k
        return cast("BaseRetriever", sized)


def _documents(nodes: Sequence[NodeWithScore]) -> list[Document]:
    return [to_wrapped_document(found.node) for found in nodes]


def _check_no_filter(filter: Any) -> None:
    if filter is not None:
        raise ValueError("set filters in the wrapped retriever: index.as_retriever(filters=...)")
