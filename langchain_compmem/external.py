"""A retriever or vector store of LangChain as the first stage of the loop."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever

import compmem
from compmem.config import DEFAULT_CANDIDATES
from langchain_compmem.documents import TWO_FILTERS, EmbeddingsEncoder, is_empty_filter, to_core
from langchain_compmem.wrappers import innermost, layers, with_changed

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
            below 1, or metadata_keys is a string.
    """
    if isinstance(metadata_keys, str):
        raise ValueError(f"metadata_keys must be a list of keys, such as [{metadata_keys!r}]")
    if not isinstance(retriever, Runnable | VectorStore):
        raise ValueError(f"retriever must be a BaseRetriever or a VectorStore, not {type(retriever).__name__}")
    inner = [one.vectorstore if isinstance(one, VectorStoreRetriever) else one for one in innermost(retriever)]
    if any(isinstance(getattr(store, "index", None), compmem.BaseIndex) for store in inner):
        raise ValueError("retriever has an index of CompMem already: give that as index=, and its filter as filter=")
    options: dict[str, Any] = {} if embeddings is None else {"encoder": EmbeddingsEncoder(embeddings)}

    wrapped = _Wrapped(retriever, tuple(metadata_keys))
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


def _with_k(retriever: _Retrieving, k: int) -> _Retrieving:
    """A copy with this number of results, if the retriever has a field for it."""

    def change(inner: Any) -> Any:
        has_k = isinstance(inner, BaseRetriever) and "k" in type(inner).model_fields
        return inner.model_copy(update={"k": k}) if has_k else inner

    changed: _Retrieving = with_changed(retriever, change)
    return changed


def _filter(filter: Any) -> dict[str, Any]:
    return {} if filter is None else {"filter": filter}


def _arguments(retriever: _Retrieving, k: int, filter: Any) -> dict[str, Any]:
    """The arguments of the retriever besides the query.

    Raises:
        ValueError: There is a filter, and the retriever would ignore it or has one that it would replace.
    """
    inner, has_filter = innermost(retriever), any(map(_has_filter, layers(retriever)))
    filter = None if has_filter and is_empty_filter(filter) else filter
    if filter is not None:
        refusing = (one for one in inner if not isinstance(one, VectorStoreRetriever) and not _takes_filter(one))
        if (one := next(refusing, None)) is not None:
            raise ValueError(f"{type(one).__name__} takes no filter with a question: set one when it is made")
        if has_filter:
            raise ValueError(TWO_FILTERS)
    takes_k = all(isinstance(one, VectorStoreRetriever) for one in inner)
    return {"k": k, **_filter(filter)} if takes_k else _filter(filter)


def _takes_filter(retriever: Any) -> bool:
    """Whether a retriever takes a filter with a question; a runnable that is no retriever does not."""
    method = getattr(retriever, "_get_relevant_documents", None)
    taken = inspect.signature(method).parameters.values() if method else ()
    return any(p.name == "filter" or p.kind is p.VAR_KEYWORD for p in taken)


def _has_filter(layer: Any) -> bool:
    """Whether a filter was set when this was made."""
    match layer:
        case RunnableBindingBase():
            return layer.kwargs.get("filter") is not None
        case VectorStoreRetriever():
            return layer.search_kwargs.get("filter") is not None
        case BaseRetriever():
            return getattr(layer, "filter", None) is not None
    return False
