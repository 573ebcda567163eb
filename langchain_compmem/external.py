"""A retriever or vector store of LangChain as the first stage of the loop."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableWithFallbacks
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

import compmem
from compmem.config import DEFAULT_CANDIDATES
from langchain_compmem.documents import EmbeddingsEncoder, to_core

_Retrieving: TypeAlias = Runnable[str, list[Document]]
Wrappable: TypeAlias = _Retrieving | VectorStore
"""What returns documents for a question."""


def external_index(
    retriever: Wrappable,
    *,
    embeddings: Embeddings | None = None,
    candidates: int = DEFAULT_CANDIDATES,
    metadata_keys: Sequence[str] = (),
) -> "compmem.ExternalIndex":
    """An index over this retriever or vector store; each of its documents is one chunk.

    Args:
        retriever: Returns documents for a question; also one with retries, fallbacks or a config.
        embeddings: Encodes sentences. None: CompMem's own encoder, whatever the store uses.
        candidates: Documents to request for a question, if the retriever has a setting for their number.
        metadata_keys: Metadata that questions may ask about, such as `author`.

    Raises:
        ValueError: It is neither a retriever nor a vector store, or one of an index of CompMem; or candidates is
            below 1.
    """
    if not isinstance(retriever, Runnable | VectorStore):
        raise ValueError(f"retriever must be a BaseRetriever or a VectorStore, not {type(retriever).__name__}")
    inner = _unwrapped(retriever)
    store = inner.vectorstore if isinstance(inner, VectorStoreRetriever) else inner
    if isinstance(getattr(store, "index", None), compmem.BaseIndex):
        raise ValueError("retriever has an index of CompMem already: give that as index=, and its filter as filter=")
    options: dict[str, Any] = {} if embeddings is None else {"encoder": EmbeddingsEncoder(embeddings)}

    wrapped = _Wrapped(retriever, metadata_keys)
    return compmem.ExternalIndex(wrapped.retrieve, aretrieve=wrapped.aretrieve, candidates=candidates, **options)


@dataclass(frozen=True)
class _Wrapped:
    """The functions of an `ExternalIndex`, for a retriever or a vector store."""

    retriever: Wrappable
    metadata_keys: Sequence[str]

    def retrieve(self, query: str, k: int, filter: Any) -> list[compmem.Document]:
        if isinstance(self.retriever, VectorStore):
            return self._documents(self.retriever.similarity_search(query, k=k, **_filter(filter)))
        return self._documents(_with_k(self.retriever, k).invoke(query, **_arguments(self.retriever, k, filter)))

    async def aretrieve(self, query: str, k: int, filter: Any) -> list[compmem.Document]:
        if isinstance(self.retriever, VectorStore):
            return self._documents(await self.retriever.asimilarity_search(query, k=k, **_filter(filter)))
        arguments = _arguments(self.retriever, k, filter)
        return self._documents(await _with_k(self.retriever, k).ainvoke(query, **arguments))

    def _documents(self, found: Sequence[Document]) -> list[compmem.Document]:
        if wrong := {type(one).__name__ for one in found if not isinstance(one, Document)}:
            raise TypeError(f"the retriever must return documents, not {', '.join(sorted(wrong))}")
        return [to_core(document, split=False, metadata_keys=self.metadata_keys) for document in found]


def _unwrapped(retriever: Wrappable) -> Any:
    """The retriever without a config, retries and fallbacks."""
    while isinstance(retriever, RunnableBindingBase | RunnableWithFallbacks):
        retriever = retriever.bound if isinstance(retriever, RunnableBindingBase) else retriever.runnable
    return retriever


def _with_k(retriever: _Retrieving, k: int) -> _Retrieving:
    """A copy with this number of results, if the retriever has a field for it."""
    if isinstance(retriever, BaseRetriever) and "k" in type(retriever).model_fields:
        return retriever.model_copy(update={"k": k})
    return retriever


def _takes_nothing() -> None:
    """Stands for the method of a runnable that is no retriever."""


def _filter(filter: Any) -> dict[str, Any]:
    return {} if filter is None else {"filter": filter}


def _arguments(retriever: _Retrieving, k: int, filter: Any) -> dict[str, Any]:
    """The arguments of the retriever besides the query.

    Raises:
        ValueError: There is a filter, and the retriever would ignore it.
    """
    if isinstance(retriever, VectorStoreRetriever):
        return {"k": k, **_filter(filter)}
    takes = getattr(_unwrapped(retriever), "_get_relevant_documents", _takes_nothing)
    taken = inspect.signature(takes).parameters.values()
    if filter is not None and not any(p.name == "filter" or p.kind is p.VAR_KEYWORD for p in taken):
        raise ValueError(f"{type(retriever).__name__} takes no filter with a question: set one when it is made")
    return _filter(filter)
