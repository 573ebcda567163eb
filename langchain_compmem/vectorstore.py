"""The index as a vector store of LangChain, for what insists on one."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Self, cast

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.vectorstores import VectorStore
from langchain_core.vectorstores.utils import maximal_marginal_relevance

import compmem
from compmem import IndexConfig, RecallMethod
from langchain_compmem.documents import EmbeddingsEncoder, Filter, from_chunks
from langchain_compmem.retriever import CompMemRetriever, refuse


class CompMemVectorStore(VectorStore):
    """A vector store whose searches are recalls: what the loop gathers, best first.

    For `ParentDocumentRetriever`, `SelfQueryRetriever` and others that take no other kind of index. Documents are kept
    as they are given, each as one chunk, and come back with their own metadata. Scores are the gate's probabilities,
    in [0, 1], higher is better; they are no cosines, and right documents often have less than 0.5, so a threshold is
    chosen on questions of your own. There is no search by a vector, since the gate reads questions.

    Example:
        >>> store = CompMemVectorStore(MemoryIndex.create("handbook.mem"))
        >>> store.add_texts(["The lease ends in 2031."], [{"year": 2024}], ids=["lease"])
        >>> store.similarity_search("When does the lease end?", k=2, filter={"year": 2024})
    """

    def __init__(self, index: "compmem.MemoryIndex | str | Path", **fields: Any) -> None:
        """Sets it up.

        Args:
            index: The index, or the path of its folder.
            **fields: Fields of `CompMemRetriever`: `filter`, `method`, `metadata_keys`, `recall_config`.

        Raises:
            ValueError: There is no index there, or a field is none.
        """
        self.memory = CompMemRetriever(index=cast("compmem.MemoryIndex", index), **fields)

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
            texts: What it holds to begin with.
            embedding: The encoder. None: the one `config` names.
            metadatas: The metadata of each text.
            ids: The id of each text. None: hashes of the content.
            path: Folder of the index, which must be new. None: a temporary one.
            config: How documents become memory.
            **fields: Fields of `CompMemRetriever`: `filter`, `method`, `metadata_keys`, `recall_config`.

        Raises:
            ValueError: The folder holds something already, or both `embedding` and `config` are given.
        """
        empty = CompMemRetriever.from_documents([], embeddings=embedding, path=path, config=config)
        made = cls(empty.own, **fields)
        made.add_texts(texts, metadatas, ids=ids)
        return made

    @property
    def embeddings(self) -> Embeddings | None:
        """The embeddings that the index was made with; None where its encoder is another."""
        encoder = self.memory.index.config.encoder
        return encoder.embeddings if isinstance(encoder, EmbeddingsEncoder) else None

    def add_documents(
        self,
        documents: list[Document],
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Keeps documents and returns the ids of those that were kept: of all but those without text.

        Args:
            documents: What to keep; one whose id is known is replaced if it changed, else costs nothing.
            ids: The id of each document, instead of its own.
            batch_size: Not needed: documents are compressed and committed in batches by size.
            **kwargs: Not taken.

        Raises:
            ValueError: Metadata is not JSON, or there are not as many ids as documents.
            TypeError: An argument is unknown.
        """
        refuse("add_documents", kwargs)
        if ids is not None:
            _check_many("ids", ids, documents)
            pairs = zip(documents, ids, strict=True)
            documents = [d if name is None else d.model_copy(update={"id": name}) for d, name in pairs]
        return self.memory.upsert(documents)["succeeded"]

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`add_documents` of texts. Raises what it raises."""
        held = list(texts)
        if metadatas:
            _check_many("metadatas", metadatas, held)
        metadata = metadatas or [{} for _ in held]
        documents = [Document(page_content=text, metadata=m) for text, m in zip(held, metadata, strict=True)]
        return self.add_documents(documents, ids=ids or None, **kwargs)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Forgets documents; ids that are unknown are passed over. None: every document.

        Raises:
            TypeError: An argument is unknown.
        """
        everything = [info.id for info in self.memory.own.documents()] if ids is None else ids
        self.memory.delete(everything, **kwargs)
        return True

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids, in that order, without those that are unknown."""
        return self.memory.get(ids)

    def similarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, *, method: RecallMethod | None = None, **kwargs: Any
    ) -> list[Document]:
        """The k documents that the question needs, best first; fewer only where the filter admits fewer.

        Args:
            query: The question.
            k: How many documents come back.
            filter: Metadata filter, such as `{"year": {">=": 2020}}`. None: the field's.
            method: The loop, or one pass; see `CompMemRetriever.method`. None: as the field says.
            **kwargs: Not taken.

        Raises:
            ValueError: The question is empty, k is below 1, or the filter is none.
            TypeError: An argument is unknown.
        """
        found = self.similarity_search_with_score(query, k, filter, method=method, **kwargs)
        return [document for document, _ in found]

    async def asimilarity_search(
        self, query: str, k: int = 4, filter: Filter | None = None, *, method: RecallMethod | None = None, **kwargs: Any
    ) -> list[Document]:
        """`similarity_search` for an event loop."""
        found = await self.asimilarity_search_with_score(query, k, filter, method=method, **kwargs)
        return [document for document, _ in found]

    def similarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, *, method: RecallMethod | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """What `similarity_search` finds, with gate scores in [0, 1], higher is better. Raises what it raises."""
        refuse("similarity_search", kwargs)
        return self._scored(self.memory.recall(query, k, filter=filter, method=method))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, filter: Filter | None = None, *, method: RecallMethod | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score` for an event loop."""
        refuse("asimilarity_search", kwargs)
        return self._scored(await self.memory.arecall(query, k, filter=filter, method=method))

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """Of the best `fetch_k` documents the k that are near to the question and far from each other, by cosine.

        Args:
            query: The question.
            k: How many documents come back.
            fetch_k: How many are recalled to choose from.
            lambda_mult: 1 for nearness to the question alone, 0 for difference alone.
            **kwargs: `filter` and `method`, as `similarity_search` takes them.

        Raises:
            ValueError: As `similarity_search`, or the index has no encoder.
        """
        found = self.similarity_search(query, max(k, fetch_k), **kwargs)
        encoder = self.memory.index.encoder
        vectors = encoder.encode([document.page_content for document in found])
        chosen = maximal_marginal_relevance(encoder.encode_query([query])[0], vectors.tolist(), lambda_mult, k)
        return [found[number] for number in chosen]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return lambda score: score

    def _scored(self, recalls: Sequence[compmem.Recall]) -> list[tuple[Document, float]]:
        documents = from_chunks(self.memory.index, [recall.chunk for recall in recalls])
        return [(document, float(recall.score)) for document, recall in zip(documents, recalls, strict=True)]


def _check_many(name: str, given: Sequence[Any], documents: Sequence[Any]) -> None:
    if len(given) != len(documents):
        raise ValueError(f"{len(given)} {name} are given for {len(documents)} documents")
