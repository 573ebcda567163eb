"""The index: a CompMem index behind LlamaIndex's `BaseIndex`."""

import asyncio
import inspect
import logging
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.callbacks import CallbackManager
from llama_index.core.chat_engine import CondensePlusContextChatEngine, ContextChatEngine, SimpleChatEngine
from llama_index.core.chat_engine.types import BaseChatEngine, ChatMode
from llama_index.core.indices.base import BaseIndex
from llama_index.core.indices.registry import INDEX_STRUCT_TYPE_TO_INDEX_CLASS
from llama_index.core.ingestion import arun_transformations, run_transformations
from llama_index.core.llms import LLM
from llama_index.core.llms.utils import LLMType, resolve_llm
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.schema import BaseNode, Document, IndexNode, TransformComponent
from llama_index.core.storage.docstore.types import RefDocInfo
from llama_index.core.storage.storage_context import StorageContext
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, SimpleVectorStore
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

import compmem
from compmem import Encoder, IndexConfig, RecallConfig, RecallMethod, RuntimeConfig
from llama_index_compmem.chat_engine import CompMemChatEngine
from llama_index_compmem.chat_options import chat_options, check_options, split_options
from llama_index_compmem.errors import framework_errors
from llama_index_compmem.llm import ChatModel
from llama_index_compmem.loading import as_encoder, open_memory
from llama_index_compmem.node_parser import CompMemNodeParser, assign_ids, has_random_ids, settings_name_transformations
from llama_index_compmem.nodes import (
    NODE_KEY,
    REF_DOC_KEY,
    RESERVED_KEYS,
    ids_of_ref_docs,
    node_list,
    source_hash,
    to_documents,
)
from llama_index_compmem.query_engine import CompMemQueryEngine
from llama_index_compmem.retriever import DEFAULT_TOP_K, CompMemRetriever
from llama_index_compmem.storage import STRUCT_TYPE, CompMemStruct, PackedVectorStore, struct_of, unpack
from llama_index_compmem.vector_store import CompMemVectorStore

if TYPE_CHECKING:
    from compmem import MemoryIndex

_OWN_CHAT_ENGINE = (
    "a CompMemChatEngine; chat_mode='condense_plus_context' is LlamaIndex's own engine over this index's retriever, "
    "with all of its options"
)

logger = logging.getLogger(__name__)


class CompMemIndex(BaseIndex[CompMemStruct]):
    """Documents compressed once and stored, in place of a vector index.

    With `path=` the index is stored in that folder: inserted nodes are there at once, other processes may read it, and
    `storage_context.persist` stores its path. Without it, the index is temporary, and `persist` packs it into the
    persist folder, which may then be moved; large indexes should have their own folder. An LLM is called only if given.

    Documents are split by a `CompMemNodeParser`, into chunks of `config.chunk_tokens`, unless `transformations` or the
    framework's `Settings` name other transformations.

    Args:
        nodes: Nodes to store.
        objects: Nodes that refer to other retrievers, engines or nodes.
        index_struct: From a loader: the index exists, and nothing is stored again.
        storage_context: Stores documents' hashes and is persisted. If its vector store is a `CompMemVectorStore`, nodes
            are stored there.
        callback_manager: Legacy callbacks.
        transformations: How `insert` splits documents. None: those in `Settings`, else the index's own parser.
        show_progress: Show a progress bar while nodes are stored.
        path: Folder of the index; a new one, or with `index_struct` the one to open.
        config: How documents are compressed.
        embed_model: An embedding model of LlamaIndex, or any object with `encode(texts)`, instead of the encoder in
            `config`. Models and objects are not persisted: pass them to the loader again.
        recall_config: Settings of the loop for engines and retrievers over this index that have none of their own.
        runtime: Device, types and search of this process.
        memory: With `index_struct`, the index that is already open; see `from_memory`.
        use_async: As the next two, an option of `VectorStoreIndex`, not used.
        insert_batch_size: Not used.
        store_nodes_override: Not used.

    Raises:
        TypeError: Something is no node.
        ValueError: Nodes are missing; the folder is not empty, or has no index; the storage context has another kind of
            vector store; or a node's metadata is not JSON.
    """

    index_struct_cls = CompMemStruct

    def __init__(
        self,
        nodes: Sequence[BaseNode] | None = None,
        objects: Sequence[IndexNode] | None = None,
        index_struct: CompMemStruct | None = None,
        storage_context: StorageContext | None = None,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        show_progress: bool = False,
        *,
        path: str | Path | None = None,
        config: IndexConfig | None = None,
        embed_model: BaseEmbedding | Encoder | None = None,
        recall_config: RecallConfig | None = None,
        runtime: RuntimeConfig | None = None,
        memory: "MemoryIndex | None" = None,
        use_async: bool = False,
        insert_batch_size: int = 0,
        store_nodes_override: bool = False,
    ) -> None:
        if nodes is None and objects is None and index_struct is None:
            raise ValueError("give nodes=, which may be []; CompMemIndex.from_memory(path) opens an index that exists")
        self._recall_config = recall_config
        self._folder = path
        self._config = config or IndexConfig()
        if embed_model is not None:
            self._config = replace(self._config, encoder=as_encoder(embed_model))
        self._runtime = runtime
        storage_context = storage_context or StorageContext.from_defaults()
        if index_struct is not None:
            opened = self._open_memory(index_struct, storage_context, embed_model) if memory is None else memory
            self._memory = opened
            self._add_to_storage(index_struct, storage_context)
        super().__init__(
            nodes=None if nodes is None else node_list(nodes),
            objects=None if objects is None else list(objects),
            index_struct=index_struct,
            storage_context=storage_context,
            callback_manager=callback_manager,
            transformations=transformations,
            show_progress=show_progress,
        )
        if not transformations and not settings_name_transformations():
            self._transformations = [CompMemNodeParser(self._memory)]

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        storage_context: StorageContext | None = None,
        show_progress: bool = False,
        callback_manager: CallbackManager | None = None,
        transformations: list[TransformComponent] | None = None,
        **options: Any,
    ) -> "CompMemIndex":
        """An index of documents, split by `transformations`, else as `Settings` say, else by the index itself.

        The other options are those of the class. Documents are checked before the index is created.

        Raises:
            ValueError: The folder is not empty, or a document's metadata is not JSON.
        """
        to_documents(documents := node_list(documents))
        if transformations or settings_name_transformations():
            return super().from_documents(
                documents, storage_context, show_progress, callback_manager, transformations, **options
            )
        index = cls(
            [], storage_context=storage_context, callback_manager=callback_manager, show_progress=show_progress,
            **options,
        )  # fmt: skip
        with index._callback_manager.as_trace("index_construction"):
            index.insert_nodes(run_transformations(documents, index._transformations, show_progress=show_progress))
            for document in documents:
                index.docstore.set_document_hash(document.id_, document.hash)
        return index

    @classmethod
    def from_nodes(cls, nodes: Sequence[BaseNode], **options: Any) -> "CompMemIndex":
        """An index of nodes that are already split; the options are those of the class."""
        return cls(nodes=nodes, **options)

    @classmethod
    def from_memory(
        cls,
        memory: "MemoryIndex | str | Path",
        storage_context: StorageContext | None = None,
        *,
        embed_model: BaseEmbedding | Encoder | None = None,
        **options: Any,
    ) -> "CompMemIndex":
        """An index over an existing CompMem index, given as an object or by its folder.

        Documents that were not added with LlamaIndex are returned as text nodes, one per chunk. The other options are
        those of the class.

        Raises:
            ValueError: There is no index, or it was made with another embedding model.
        """
        opened = open_memory(memory, embed_model) if isinstance(memory, str | Path) else memory
        struct = struct_of(opened)
        index = cls(
            index_struct=struct, storage_context=storage_context, memory=opened, embed_model=embed_model, **options
        )
        for document in opened.documents():  # for refresh, which compares hashes
            if (ref_doc_id := document.metadata.get(REF_DOC_KEY)) and (known := source_hash(document.metadata)):
                index.docstore.set_document_hash(ref_doc_id, known)
        return index

    @property
    def memory(self) -> "MemoryIndex":
        """The CompMem index."""
        return self._memory

    @property
    def recall_config(self) -> RecallConfig | None:
        """Settings of the loop for what is made from this index and has none of its own."""
        return self._recall_config

    # Writing

    def _build_index_from_nodes(self, nodes: Sequence[BaseNode], **build_kwargs: Any) -> CompMemStruct:
        documents, store = to_documents(nodes), self._storage_context.vector_store
        if not isinstance(store, CompMemVectorStore | SimpleVectorStore | PackedVectorStore):
            raise ValueError(
                f"CompMemIndex keeps nodes in an index of its own, not in {type(store).__name__}: give it path=, or "
                "query that store with CompMemQueryEngine.from_retriever"
            )
        if isinstance(store, CompMemVectorStore) and (self._folder is not None or self._config != IndexConfig()):
            raise ValueError("the storage context's CompMemVectorStore has its own path=, config= and embed_model=")
        with framework_errors():
            self._memory = (
                store.memory
                if isinstance(store, CompMemVectorStore)
                else compmem.MemoryIndex.create(self._folder, self._config, runtime=self._runtime)
            )
            self._memory.add(documents, show_progress=self._show_progress)
        struct = struct_of(self._memory)
        self._add_to_storage(struct, self._storage_context)
        return struct

    def _insert(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        documents = to_documents(nodes)
        with framework_errors():
            self._memory.add(documents, show_progress=self._show_progress)

    async def ainsert_nodes(self, nodes: Sequence[BaseNode], **insert_kwargs: Any) -> None:
        """Inserts nodes without blocking the event loop."""
        await asyncio.to_thread(self.insert_nodes, nodes, **insert_kwargs)

    def as_vector_store(self) -> CompMemVectorStore:
        """This index as the vector store of an `IngestionPipeline` or a `VectorStoreIndex`."""
        return CompMemVectorStore(self._memory, recall_config=self._recall_config)

    def _delete_node(self, node_id: str, **delete_kwargs: Any) -> None:
        with framework_errors():
            self._memory.delete([node_id])

    def delete_nodes(self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Deletes nodes, all in one commit; unknown ids are ignored."""
        with framework_errors():
            self._memory.delete(node_ids)
        super().delete_nodes([], **delete_kwargs)
        if delete_from_docstore:
            for node_id in node_ids:
                self.docstore.delete_document(node_id, raise_error=False)

    async def adelete_nodes(
        self, node_ids: list[str], delete_from_docstore: bool = False, **delete_kwargs: Any
    ) -> None:
        """`delete_nodes` for an event loop."""
        await asyncio.to_thread(self.delete_nodes, node_ids, delete_from_docstore, **delete_kwargs)

    def delete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """Deletes every node of a document."""
        node_ids = ids_of_ref_docs(self._memory, [ref_doc_id])[ref_doc_id]
        if not node_ids:
            logger.warning("ref_doc_id %s not found, nothing deleted.", ref_doc_id)
        self.delete_nodes(node_ids, delete_from_docstore=delete_from_docstore, **delete_kwargs)
        if delete_from_docstore:
            self.docstore.delete_ref_doc(ref_doc_id, raise_error=False)
            self.docstore.delete_document(ref_doc_id, raise_error=False)

    async def adelete_ref_doc(self, ref_doc_id: str, delete_from_docstore: bool = False, **delete_kwargs: Any) -> None:
        """`delete_ref_doc` for an event loop."""
        await asyncio.to_thread(self.delete_ref_doc, ref_doc_id, delete_from_docstore, **delete_kwargs)

    def update_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """Replaces a document; if the new one cannot be stored, the old one stays.

        Raises:
            ValueError: Its metadata is not JSON, or the index is locked.
        """
        options = update_kwargs.pop("insert_kwargs", {})
        with self._callback_manager.as_trace("update_ref_doc"):
            self._replace([document], run_transformations([document], self._transformations, **options))

    async def aupdate_ref_doc(self, document: Document, **update_kwargs: Any) -> None:
        """`update_ref_doc` for an event loop."""
        options = update_kwargs.pop("insert_kwargs", {})
        with self._callback_manager.as_trace("aupdate_ref_doc"):
            nodes = await arun_transformations([document], self._transformations, **options)
            await asyncio.to_thread(self._replace, [document], nodes)

    def refresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """Replaces documents that have changed and inserts new ones, all at once; returns which they are.

        Raises:
            ValueError: A document's metadata is not JSON, so nothing has changed, or the index is locked.
        """
        options = update_kwargs.pop("insert_kwargs", {})
        with self._callback_manager.as_trace("refresh_ref_docs"):
            changed = self._changed(documents)
            self._replace(changed, run_transformations(changed, self._transformations, **options))
        return _is_changed(documents, changed)

    async def arefresh_ref_docs(self, documents: Sequence[Document], **update_kwargs: Any) -> list[bool]:
        """`refresh_ref_docs` for an event loop."""
        options = update_kwargs.pop("insert_kwargs", {})
        with self._callback_manager.as_trace("arefresh_ref_docs"):
            changed = await asyncio.to_thread(self._changed, documents)
            nodes = await arun_transformations(changed, self._transformations, **options)
            await asyncio.to_thread(self._replace, changed, nodes)
        return _is_changed(documents, changed)

    def _changed(self, documents: Sequence[Document]) -> list[Document]:
        """The documents that are new or have changed; of several with one id the last."""
        to_documents(documents)
        newest = {document.id_: document for document in documents}
        return [each for name, each in newest.items() if self.docstore.get_document_hash(name) != each.hash]

    def _replace(self, documents: Sequence[Document], nodes: Sequence[BaseNode]) -> None:
        """Stores the new nodes, then deletes the old nodes that were not replaced."""
        if not documents:
            return
        old = ids_of_ref_docs(self._memory, [document.id_ for document in documents])
        if has_random_ids(self._transformations):
            made: dict[str | None, list[BaseNode]] = {}
            for node in nodes:
                made.setdefault(node.ref_doc_id, []).append(node)
            for name, ids in old.items():
                assign_ids(made.get(name, ()), [node_id for node_id in ids if node_id != name])
        stored = to_documents(nodes)
        with framework_errors():
            self._memory.add(stored, show_progress=self._show_progress)
            self._memory.delete([*{node_id for ids in old.values() for node_id in ids} - {d.id for d in stored}])
        for name, ids in old.items():
            self.docstore.delete_ref_doc(name, raise_error=False)
            for gone in (*ids, name):
                self.docstore.delete_document(gone, raise_error=False)
        self.insert_nodes(nodes)  # in the docstore; the index knows them
        for document in documents:
            self.docstore.set_document_hash(document.id_, document.hash)

    @property
    def ref_doc_info(self) -> dict[str, RefDocInfo]:
        """The documents that the nodes belong to, with the nodes' ids and the first one's metadata."""
        found: dict[str, RefDocInfo] = {}
        for document in self._memory.documents():
            if NODE_KEY in document.metadata:
                ref_doc_id, ids = document.metadata.get(REF_DOC_KEY), [document.id]
            else:
                ref_doc_id, ids = document.id, [f"{document.id}#{n}" for n in range(document.chunks)]
            if ref_doc_id:
                metadata = {k: v for k, v in document.metadata.items() if k not in RESERVED_KEYS}
                found.setdefault(ref_doc_id, RefDocInfo(metadata=metadata)).node_ids.extend(ids)
        return found

    # Querying

    def as_retriever(  # type: ignore[override]  # unknown options are refused, not ignored
        self,
        similarity_top_k: int = DEFAULT_TOP_K,
        filters: MetadataFilters | MetadataFilter | None = None,
        *,
        method: RecallMethod = "loop",
        min_score: float = 0.0,
        recall_config: RecallConfig | None = None,
        verbose: bool = False,
    ) -> CompMemRetriever:
        """A retriever over this index; see `CompMemRetriever`."""
        return CompMemRetriever(
            self,
            similarity_top_k,
            filters,
            method=method,
            min_score=min_score,
            recall_config=recall_config,
            callback_manager=self._callback_manager,
            object_map=self._object_map,
            verbose=verbose,
        )

    def as_query_engine(
        self,
        llm: LLMType | None = None,
        *,
        chat: ChatModel | None = None,
        similarity_top_k: int | None = None,
        filters: MetadataFilters | MetadataFilter | None = None,
        recall_config: RecallConfig | None = None,
        streaming: bool = False,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        prompts: dict[str, BasePromptTemplate] | None = None,
        verbose: bool = False,
        **others: Any,
    ) -> CompMemQueryEngine:
        """A query engine over this index; see `CompMemQueryEngine`. Without `llm` no LLM is called.

        Raises:
            TypeError: An option is unknown, or belongs to the framework's response synthesizers.
        """
        if others:
            name = next(iter(others))
            if near := get_close_matches(name, inspect.signature(self.as_query_engine).parameters, 1):
                raise TypeError(f"{name}= is no option of this engine: did you mean {near[0]}=?")
            raise TypeError(
                f"{name}= is no option of this engine, which writes the answer itself, from prompts=. "
                "For response synthesizers: RetrieverQueryEngine.from_args(index.as_retriever(), llm=..., ...)"
            )
        return CompMemQueryEngine(
            self,
            self._resolve_llm(llm),
            chat=chat,
            similarity_top_k=similarity_top_k,
            filters=filters,
            recall_config=recall_config,
            streaming=streaming,
            node_postprocessors=node_postprocessors,
            prompts=prompts,
            callback_manager=self._callback_manager,
            object_map=self._object_map,
            verbose=verbose,
        )

    def _resolve_llm(self, llm: Any) -> Any:
        """The resolved LLM; a plain callable is returned unchanged, and the engine refuses it with a hint."""
        if llm is None or (callable(llm) and not isinstance(llm, LLM)):
            return llm
        return resolve_llm(llm, callback_manager=self._callback_manager)

    def as_chat_engine(
        self, chat_mode: ChatMode = ChatMode.BEST, llm: LLMType | None = None, **options: Any
    ) -> BaseChatEngine:
        """A conversation over this index.

        `best` and `condense_question` are a `CompMemChatEngine`, which needs no LLM; its options are `memory`,
        `chat_history`, `condense_prompt` (also called `condense_question_prompt`), `system_prompt`, which is added to
        the prompt that the LLM answers from, and those of `as_query_engine`. `context`, `condense_plus_context` and
        `simple` are the framework's own engines, the first two over this index's retriever with its options.

        Raises:
            TypeError: An option is unknown.
            ValueError: The mode is unknown or no longer supported, or needs an LLM and none is given.
        """
        asked = self._resolve_llm(llm)
        if chat_mode in (ChatMode.BEST, ChatMode.CONDENSE_QUESTION):
            own, rest = chat_options(options)
            check_options(rest, self.as_query_engine, _OWN_CHAT_ENGINE)
            engine = self.as_query_engine(asked, **rest)
            return CompMemChatEngine(engine, asked, verbose=rest.get("verbose", False), **own)
        if asked is None:
            raise ValueError(f"chat_mode={chat_mode!r} needs llm=; without one there is {ChatMode.BEST.value!r}")
        if chat_mode == ChatMode.SIMPLE:
            check_options(options, SimpleChatEngine.from_defaults, f"chat_mode={chat_mode!r}")
            return SimpleChatEngine.from_defaults(llm=asked, **options)
        if chat_mode in (ChatMode.CONTEXT, ChatMode.CONDENSE_PLUS_CONTEXT):
            own, options = split_options(options, "similarity_top_k", "filters", "method", "min_score", "recall_config")
            retriever = self.as_retriever(**own)
            kind = ContextChatEngine if chat_mode == ChatMode.CONTEXT else CondensePlusContextChatEngine
            check_options(options, kind.from_defaults, f"chat_mode={chat_mode!r}")
            return kind.from_defaults(retriever=retriever, llm=asked, **options)
        return super().as_chat_engine(chat_mode, llm=asked)

    def _open_memory(
        self, struct: CompMemStruct, storage: StorageContext, embed_model: BaseEmbedding | Encoder | None
    ) -> "MemoryIndex":
        if self._folder is not None or struct.path is not None:
            return open_memory(self._folder or struct.path or "", embed_model, self._runtime)
        return unpack(storage.vector_stores, struct.store_name, embed_model, self._runtime)

    def _add_to_storage(self, struct: CompMemStruct, storage: StorageContext) -> None:
        """Adds an index without its own folder to the storage context, which can then persist it.

        A `CompMemVectorStore` is not persisted with its context, so a loaded context may lack its default store.
        """
        if struct.path is None:
            storage.vector_stores[struct.store_name] = PackedVectorStore(self._memory)
            storage.vector_stores.setdefault(DEFAULT_VECTOR_STORE, SimpleVectorStore())
        elif DEFAULT_VECTOR_STORE not in storage.vector_stores:
            storage.vector_stores[DEFAULT_VECTOR_STORE] = self.as_vector_store()


INDEX_STRUCT_TYPE_TO_INDEX_CLASS[STRUCT_TYPE] = CompMemIndex


def _is_changed(documents: Sequence[Document], changed: Sequence[Document]) -> list[bool]:
    names = {document.id_ for document in changed}
    return [document.id_ in names for document in documents]
