"""The index as a vector store of LangChain."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self, cast

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

import compmem
from compmem import IndexConfig, RecallMethod
from compmem.threads import in_thread
from langchain_compmem.documents import EmbeddingsEncoder, Filter, as_documents, from_chunks, open_folder
from langchain_compmem.retriever import CompMemRetriever, refuse


class CompMemVectorStore(VectorStore):
    """A vector store whose searches run the loop: it returns what the loop recalls, best first.

    For `ParentDocumentRetriever`, `SelfQueryRetriever` and other classes that need a vector store. Each document is
    stored unchanged as one chunk, and is returned with its own metadata, in which a date is an ISO string and a tuple a
    list. Scores are the gate's probabilities in [0, 1], higher is better. They are not cosines, and right documents
    often have less than 0.5, so choose a threshold on your own questions. Search by a vector is not supported, since
    the gate reads questions.

    Example:
        >>> store = CompMemVectorStore("handbook.mem")
        >>> store.add_texts(["The lease ends in 2031."], [{"year": 2024}], ids=["lease"])
        >>> store.similarity_search("When does the lease end?", k=2, filter={"year": 2024})
    """

    def __init__(
        self, index: "compmem.MemoryIndex | str | Path", *, embeddings: Embeddings | None = None, **fields: Any
    ) -> None:
        """Creates the vector store.

        Args:
            index: The index, or the path of its folder. The index is created if the folder does not exist or is empty.
            embeddings: The encoder of the index in the folder. None: CompMem's own encoder.
            **fields: Fields of `CompMemRetriever`: `filter`, `min_score`, `method`, `metadata_keys`, `recall_config`.

        Raises:
            ValueError: The index cannot be opened or created, or a field is unknown.
        """
        if isinstance(index, str | Path):
            index = open_folder(index, embeddings, create=True)
        elif embeddings is not None:
            raise ValueError("embeddings= is for the path of an index: an open index has its encoder")
        self.retriever = CompMemRetriever(index=index, **{"split": False, **fields})

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        path: str | Path | None = None,
        config: IndexConfig | None = None,
        **fields: Any,
    ) -> Self:
        """A vector store over a new index with these texts.

        Args:
            texts: The first texts of the index.
            embedding: The encoder. None: the one `config` names.
            metadatas: The metadata of each text.
            ids: The id of each text. None: hashes of the content.
            path: Folder of the index, which must be new. None: a temporary one.
            config: How documents are compressed.
            **fields: Fields of `CompMemRetriever`: `filter`, `min_score`, `method`, `metadata_keys`, `recall_config`.

        Raises:
            ValueError: The folder is not empty, or both `embedding` and `config` are given.
        """
        empty = CompMemRetriever.from_documents([], embeddings=embedding, path=path, config=config)
        made = cls(empty.own, **fields)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """`from_texts` for an event loop."""
        return await in_thread(partial(cls.from_texts, texts, embedding, metadatas, ids=ids, **kwargs))

    @classmethod
    def from_documents(cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any) -> Self:
        """`from_texts` for documents. Raises what that raises.

        Args:
            documents: The first documents of the index.
            embedding: The encoder. None: the one `config` names.
            **kwargs: Other arguments of `from_texts`; `ids` are used instead of the documents' own.
        """
        return super().from_documents(as_documents(documents), cast("Embeddings", embedding), **kwargs)

    @classmethod
    async def afrom_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> Self:
        """`from_documents` for an event loop."""
        return await in_thread(partial(cls.from_documents, documents, embedding, **kwargs))

    @property
    def index(self) -> "compmem.MemoryIndex":
        """The index, for example for a `CompMemReasoner`."""
        return self.retriever.own

    @property
    def embeddings(self) -> Embeddings | None:
        """The embeddings that the index was made with; None if it has another encoder."""
        encoder = self.retriever.index.config.encoder
        return encoder.embeddings if isinstance(encoder, EmbeddingsEncoder) else None

    def add_documents(
        self,
        documents: list[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Stores documents and returns the ids of those stored: all but those without text.

        Args:
            documents: Documents; a changed one replaces the document with its id, an unchanged one is skipped.
            ids: The id of each document, instead of its own.
            batch_size: Not used: documents are compressed and committed in batches by size.
            **kwargs: Not supported.

        Raises:
            ValueError: Metadata is not JSON, or there are not as many ids as documents.
            TypeError: An argument is unknown.
        """
        refuse("add_documents", kwargs)
        documents = as_documents(documents)
        if ids is not None:
            _check_many("ids", ids, documents)
            pairs = zip(documents, ids, strict=True)
            documents = [d if name is None else d.model_copy(update={"id": name}) for d, name in pairs]
        return self.retriever.upsert(documents)["succeeded"]

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`add_documents` for texts. Raises what that raises."""
        held = list(texts)
        if metadatas:
            _check_many("metadatas", metadatas, held)
        metadata = metadatas or [{} for _ in held]
        documents = [Document(page_content=text, metadata=m) for text, m in zip(held, metadata, strict=True)]
        return self.add_documents(documents, ids=ids or None, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Deletes documents; unknown ids are ignored. None: every document that the store's `filter` admits.

        Raises:
            ValueError: An id is that of a part of a longer document; nothing is deleted.
            TypeError: An argument is unknown.
        """
        admitted = [info.id for info in self.index.documents(self.retriever.filter)] if ids is None else ids
        self.retriever.delete(admitted, **kwargs)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents with these ids, in that order, without unknown ones; for the id of a part, that part."""
        return self.retriever.get(ids)

    def similarity_search(self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any) -> list[Document]:
        """The k documents that the question needs, best first; fewer if the filter admits fewer, or with `min_score`.

        Args:
            query: The question. If it is blank: documents that `filter` admits, each with a score of 0.
            k: Number of results.
            filter: Metadata filter, such as `{"year": {">=": 2020}}`; it holds together with the field's.
            **kwargs: `method`, the loop or one pass, and `min_score`, below which documents are left out; by default
                those of the store.

        Raises:
            ValueError: The question is too long, k is below 1, or the filter is invalid.
            TypeError: An argument is unknown.
        """
        found = self.similarity_search_with_score(query, k, filter, **kwargs)
        return [document for document, _ in found]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, **kwargs: Any
    ) -> list[Document]:
        """`similarity_search` for an event loop."""
        found = await self.asimilarity_search_with_score(query, k, filter, **kwargs)
        return [document for document, _ in found]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,
        *,
        method: RecallMethod | None = None,
        min_score: float | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """The results of `similarity_search` with gate scores in [0, 1], higher is better. Raises what that raises."""
        refuse("similarity_search", kwargs)
        if not query.strip():
            return [(document, 0.0) for document in self.retriever.listed(k, filter)]
        return self._scored(self.retriever.recall(query, k, filter=filter, method=method, min_score=min_score))

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        filter: Filter | None = None,
        *,
        method: RecallMethod | None = None,
        min_score: float | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score` for an event loop."""
        refuse("asimilarity_search", kwargs)
        if not query.strip():
            return [(document, 0.0) for document in await in_thread(self.retriever.listed, k, filter)]
        return await in_thread(
            self._scored, await self.retriever.arecall(query, k, filter=filter, method=method, min_score=min_score)
        )

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """The k most relevant and diverse of the best `fetch_k` documents, by cosine.

        Args:
            query: The question.
            k: Number of results.
            fetch_k: Number of documents to choose from.
            lambda_mult: 1 for similarity to the question alone, 0 for diversity alone.
            **kwargs: `filter`, `method` and `min_score`, as in `similarity_search`.

        Raises:
            ValueError: As `similarity_search`, or the index has no encoder.
        """
        found = self.similarity_search(query, max(k, fetch_k), **kwargs)
        encoder = self.retriever.index.encoder
        vectors = encoder.encode([document.page_content for document in found])
        chosen = maximal_marginal_relevance(encoder.encode_query([query])[0], vectors.tolist(), lambda_mult, k)
        return [found[number] for number in chosen]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: score

    def _scored(self, recalls: Sequence[compmem.Recall]) -> list[tuple[Document, float]]:
        documents = from_chunks(self.retriever.index, [recall.chunk for recall in recalls])
        return [(document, float(recall.score)) for document, recall in zip(documents, recalls, strict=True)]


def _check_many(name: str, given: Sequence[Any], documents: Sequence[Any]) -> None:
    if len(given) != len(documents):
        raise ValueError(f"{len(given)} {name} are given for {len(documents)} documents")
