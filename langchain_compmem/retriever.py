"""The retriever: a document index of LangChain that can be written to, searched with the loop or in one pass."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import DocumentIndex, UpsertResponse
from langchain_core.indexing.base import DeleteResponse
from langchain_core.retrievers import LangSmithRetrieverParams
from langchain_core.runnables import RunnableConfig, patch_config
from langchain_core.runnables.config import set_config_context
from langchain_core.runnables.utils import coro_with_context
from pydantic import ConfigDict, Field, InstanceOf

import compmem
from compmem import IndexConfig, ReaderError, Recall, RecallConfig, RecallMethod
from compmem.checks import checked_ids
from compmem.config import DEFAULT_CANDIDATES
from compmem.threads import in_thread
from langchain_compmem.documents import (
    EmbeddingsEncoder,
    Filter,
    Index,
    StorageSettings,
    as_documents,
    check_metadata,
    combine_filters,
    from_chunks,
    from_core,
    from_recalls,
    id_of,
    is_stored,
    open_folder,
    part_with_id,
    to_core,
    whole_id,
)
from langchain_compmem.errors import ReasoningError
from langchain_compmem.external import Wrappable, external_index

logger = logging.getLogger(__name__)


class CompMemRetriever(DocumentIndex):
    """The documents that a question needs, found by the loop: what one document says can lead to another.

    The score in `metadata["compmem_score"]` is the gate's probability, in [0, 1], that the document contains what the
    question needs. It is not a cosine, and right documents often have less than 0.5. Such keys are added to results
    and not stored, so a recalled document may be upserted again. It is a `DocumentIndex`: `upsert`, `delete`, `get`,
    their async methods, and `langchain_core.indexing.index` work.

    Example:
        >>> retriever = CompMemRetriever.from_documents(documents, path="handbook.mem", k=4)
        >>> retriever.invoke("Who pays the insurance?", k=2, filter={"year": 2024})
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")  # without its filter, all documents match

    index: Index
    """The index, or the path of its folder."""
    k: int = Field(default=4, ge=1)
    """Number of results; fewer only if the filter admits fewer, or with `min_score`."""
    filter: Filter | None = None
    """Metadata filter for every search; a call's own filter holds together with it."""
    min_score: float = Field(default=0.0, ge=0, le=1)
    """Documents with a lower score are left out, so there may be fewer than `k`."""
    method: RecallMethod = "loop"
    """The loop, or one pass: `"gate"`, `"hybrid"`, `"dense"` or `"bm25"`, as in `MemoryIndex.search`."""
    split: bool | None = None
    """Whether `upsert` splits documents into chunks of `IndexConfig.chunk_tokens`; shorter documents, such as those
    from a text splitter, stay unchanged. False: each document is one chunk. None: as the first documents of the index
    were, else true."""
    metadata_keys: Sequence[str] | None = None
    """Metadata that questions may ask about, such as `author`: `upsert` adds it to the searched text. None: the keys of
    the first documents of the index, else none."""
    recall_config: InstanceOf[RecallConfig] | None = None
    """Settings of the loop: steps, seconds. None: the defaults. Its `threshold` decides what the loop reads, not what
    is returned: for that, use `min_score`."""
    reader: Any = None
    """An object that reads in the loop; see `compmem.Reader`. None: the reader that `recall_config` names."""

    @classmethod
    def from_documents(
        cls,
        documents: Iterable[Document],
        *,
        embeddings: Embeddings | None = None,
        path: str | Path | None = None,
        config: IndexConfig | None = None,
        **fields: Any,
    ) -> Self:
        """A retriever over a new index with these documents.

        Args:
            documents: The first documents of the index.
            embeddings: The encoder. None: the one `config` names.
            path: Folder of the index, which must be new. None: a temporary one.
            config: How documents are compressed.
            **fields: Fields of the retriever, such as `k`. Documents are checked before the index is created.

        Raises:
            ValueError: The folder is not empty, both `embeddings` and `config` are given, or metadata is not JSON.
        """
        documents = as_documents(documents)
        for document in documents:
            check_metadata(document)
        if embeddings is not None:
            if config is not None:
                raise ValueError("give either embeddings or config, with encoder=EmbeddingsEncoder(embeddings)")
            config = IndexConfig(encoder=EmbeddingsEncoder(embeddings))
        made = cls(index=compmem.MemoryIndex.create(path, config), **fields)
        made.upsert(documents)
        return made

    @classmethod
    def open(cls, path: str | Path, *, embeddings: Embeddings | None = None, **fields: Any) -> Self:
        """A retriever over the index in a folder.

        Args:
            path: The folder.
            embeddings: The encoder, if the index was made with `embeddings`.
            **fields: Fields of the retriever, such as `k`.

        Raises:
            ValueError: There is no index, or it was made with another encoder.
        """
        return cls(index=open_folder(path, embeddings), **fields)

    @classmethod
    def from_retriever(
        cls,
        retriever: Wrappable,
        *,
        embeddings: Embeddings | None = None,
        candidates: int = DEFAULT_CANDIDATES,
        **fields: Any,
    ) -> Self:
        """A retriever over another one, or over a vector store: the loop queries it, and nothing is indexed.

        A `filter` is passed to it unchanged. Documents cannot be added or deleted.

        Args:
            retriever: Returns documents for a question; also one with retries, fallbacks or a config.
            embeddings: Encodes sentences. None: CompMem's own encoder, whatever the store uses.
            candidates: Documents to request for a question, if the retriever has a setting for their number.
            **fields: Fields of the retriever, such as `k` and `metadata_keys`.

        Raises:
            ValueError: It is neither a retriever nor a vector store, or one of an index of CompMem; or candidates is
                below 1.
        """
        keys = fields.get("metadata_keys") or ()
        index = external_index(retriever, embeddings=embeddings, candidates=candidates, metadata_keys=keys)
        return cls(index=index, **fields)

    @property
    def own(self) -> "compmem.MemoryIndex":
        """The index, if it is a `MemoryIndex`.

        Raises:
            ValueError: The documents are in another store.
        """
        if not isinstance(self.index, compmem.MemoryIndex):
            raise ValueError("add, delete and look up documents in the store behind this retriever, not here")
        return self.index

    def upsert(self, items: Iterable[Document], /, *, show_progress: bool = False, **kwargs: Any) -> UpsertResponse:
        """Compresses and stores documents; changed ones replace those with their ids, unchanged ones are skipped.

        A document without an id gets a hash of its content. Of documents with the same id, the last one is stored. One
        without text is not stored: its id is in `failed`.

        Raises:
            ValueError: Metadata is not JSON, or a part of a longer document was changed.
            TypeError: An argument is unknown, or something is no document.
        """
        refuse("upsert", kwargs)
        items = as_documents(items)
        blank = [id_of(item) for item in items if not item.page_content.strip()]
        if blank:
            logger.warning("%d document(s) without text were not stored, the first is %r", len(blank), blank[0])
        kept = [item for item in items if item.page_content.strip()]
        changed = [item for item in kept if not is_stored(self.own, item)]
        if changed:
            self._store(changed, show_progress=show_progress)
        return UpsertResponse(succeeded=[id_of(item) for item in kept], failed=blank)

    def _store(self, items: Sequence[Document], *, show_progress: bool) -> None:
        """Stores documents as the fields say, or as those before them; warns if other metadata will be searched."""
        before = StorageSettings.of(self.own)
        first = before or StorageSettings()
        settings = StorageSettings(
            split=first.split if self.split is None else self.split,
            metadata_keys=first.metadata_keys if self.metadata_keys is None else tuple(self.metadata_keys),
        )
        documents = [to_core(item, **asdict(settings)) for item in items]
        if before is None:
            settings.store(self.own)
        elif settings.metadata_keys != before.metadata_keys:
            logger.warning(
                "%d document(s) are stored with metadata_keys=%r, but the first of this index with %r",
                len(items),
                list(settings.metadata_keys),
                list(before.metadata_keys),
            )
        self.own.add(list({d.id: d for d in documents}.values()), show_progress=show_progress)

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> DeleteResponse:
        """Deletes documents; unknown ids are ignored.

        Raises:
            ValueError: No ids are given, or one is the id of a part of a longer document; nothing is deleted.
            TypeError: An argument is unknown.
        """
        refuse("delete", kwargs)
        if ids is None:
            raise ValueError("delete needs ids=, the documents to delete")
        ids = checked_ids(ids)
        for name, chunks in self.own.count_chunks(ids).items():
            if not chunks and (part := part_with_id(self.own, name)) is not None:
                raise ValueError(f"{name!r} is a part of a document: delete it with delete([{whole_id(part)!r}])")
        return DeleteResponse(num_deleted=self.own.delete(ids), num_failed=0, failed=[])

    def get(self, ids: Sequence[str], /, **kwargs: Any) -> list[Document]:
        """The whole documents with these ids, in that order, without unknown ones; for the id of a part, that part.

        Raises:
            TypeError: An argument is unknown.
        """
        refuse("get", kwargs)
        found = (
            part_with_id(self.own, name) if (document := self.own.get(name)) is None else from_core(document)
            for name in dict.fromkeys(ids)
        )
        return [document for document in found if document is not None]

    def _recall_arguments(
        self, k: int | None, filter: Filter | None, method: RecallMethod | None, min_score: float | None
    ) -> dict[str, Any]:
        """The arguments of the index's `recall`; those that are None come from the fields."""
        return {
            "k": self.k if k is None else k,
            "method": method or self.method,
            "min_score": self.min_score if min_score is None else min_score,
            "filter": combine_filters(self.index, self.filter, filter),
            "config": self.recall_config,
            "reader": self.reader,
        }

    def recall(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: Filter | None = None,
        method: RecallMethod | None = None,
        min_score: float | None = None,
    ) -> list[Recall]:
        """The chunks for a question, best first; arguments that are None come from the fields.

        A `filter` holds together with the field's.

        Raises:
            ValueError: The question is empty, k is below 1, or the filter is invalid.
            ReasoningError: The reader of `recall_config` failed.
        """
        try:
            return self.index.recall(query, **self._recall_arguments(k, filter, method, min_score))
        except ReaderError as error:
            raise ReasoningError(str(error), error.steps) from error

    async def arecall(
        self,
        query: str,
        k: int | None = None,
        *,
        filter: Filter | None = None,
        method: RecallMethod | None = None,
        min_score: float | None = None,
    ) -> list[Recall]:
        """`recall` for an event loop, without blocking it; cancelling it ends the work within one step."""
        try:
            return await self.index.arecall(query, **self._recall_arguments(k, filter, method, min_score))
        except ReaderError as error:
            raise ReasoningError(str(error), error.steps) from error

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Filter | None = None,
        method: RecallMethod | None = None,
        min_score: float | None = None,
        recalls: list[Recall] | None = None,  # the recalls are added to it, for a caller that needs the chunks
    ) -> list[Document]:
        if _is_blank(query):
            return self.listed(k, filter)
        with set_config_context(_config_of(run_manager)) as context:
            found = context.run(self.recall, query, k, filter=filter, method=method, min_score=min_score)
        if recalls is not None:
            recalls += found
        return from_recalls(self.index, found)

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Filter | None = None,
        method: RecallMethod | None = None,
        min_score: float | None = None,
        recalls: list[Recall] | None = None,
    ) -> list[Document]:
        if _is_blank(query):
            return await in_thread(self.listed, k, filter)
        with set_config_context(_config_of(run_manager)) as context:
            recalling = self.arecall(query, k, filter=filter, method=method, min_score=min_score)
            found = await coro_with_context(recalling, context, create_task=True)
        if recalls is not None:
            recalls += found
        return await in_thread(from_recalls, self.index, found)

    def listed(self, k: int | None = None, filter: Filter | None = None) -> list[Document]:
        """The results for a blank question: documents that the filters admit, k at most, without a score.

        There are none if the call has no filter, since then nothing was asked for.

        Raises:
            ValueError: The filter is invalid.
        """
        if not isinstance(self.index, compmem.MemoryIndex) or not filter:
            logger.warning("the question is empty, so nothing is searched for")
            return []
        most = self.k if k is None else k
        admitted = self.index.documents(combine_filters(self.index, self.filter, filter), limit=most)
        chunks = (chunk for document in admitted for chunk in self.index.chunks(document.id))
        return from_chunks(self.index, list(islice(chunks, most)))

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        encoder = self.index.config.encoder
        kind = type(encoder.embeddings if isinstance(encoder, EmbeddingsEncoder) else encoder)
        named = isinstance(encoder, str)
        return LangSmithRetrieverParams(
            **super()._get_ls_params(**kwargs),
            ls_vector_store_provider="compmem",
            ls_embedding_provider="sentence-transformers" if named else kind.__module__.partition(".")[0],
            ls_embedding_model=encoder if isinstance(encoder, str) else kind.__name__,
        )


def _is_blank(question: object) -> bool:
    """Whether a question is blank.

    Raises:
        ValueError: It is no string.
    """
    if not isinstance(question, str):
        raise ValueError(f"a retriever's input must be the question as a string, not {type(question).__name__}")
    return not question.strip()


def _config_of(run: CallbackManagerForRetrieverRun | AsyncCallbackManagerForRetrieverRun) -> RunnableConfig:
    """The config for what is called within a run, such as the retriever behind the index."""
    return patch_config(None, callbacks=run.get_child())


def refuse(method: str, kwargs: dict[str, Any]) -> None:
    """Raises a `TypeError` for unknown arguments of a method."""
    if kwargs:
        raise TypeError(f"{method}() got unexpected arguments {sorted(kwargs)!r}")
