"""The query engine: CompMem's loop behind LlamaIndex's `BaseQueryEngine`."""

import asyncio
import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from llama_index.core import Settings
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.response.schema import RESPONSE_TYPE, AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.prompts.mixin import PromptDictType, PromptMixinType
from llama_index.core.schema import NodeWithScore, QueryBundle, QueryType
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters

import compmem
from compmem import Chunk, Encoder, LoopConfig, RecallConfig
from compmem.checks import check_integer
from compmem.config import DEFAULT_CANDIDATES
from llama_index_compmem.external import external_index
from llama_index_compmem.filters import to_filter
from llama_index_compmem.llm import (
    ChatModel,
    async_chat,
    count_tokens,
    prompt_tokens,
    sync_chat,
    tell_of_unused_llm,
    to_templates,
    with_templates,
)
from llama_index_compmem.loading import HasMemory, recall_config_of, resolve_index
from llama_index_compmem.nodes import llm_content
from llama_index_compmem.response_builder import ResponseBuilder
from llama_index_compmem.retriever import DEFAULT_TOP_K, CompMemRetriever
from llama_index_compmem.synthesis import (
    index_of_nodes,
    node_contents,
    nodes_above_threshold,
    read_all_config,
    scores_by_id,
)

if TYPE_CHECKING:
    from compmem import BaseIndex


class CompMemQueryEngine(BaseQueryEngine):
    """Answers from the index: recalls relevant nodes, reads them step by step, and writes the answer.

    Without `llm` or `chat` no language model is called, not even the one in `Settings`: the answer is quoted from the
    documents, or written by the backbone if the index has KV memory. `response.metadata` is a `CompMemMetadata`: the
    metadata of the sources by their ids, and as attributes the steps, the working memory, the usage and what is cited.
    For a streamed response, metadata and sources are complete when the stream has ended.

    Args:
        index: A `CompMemIndex`, a `compmem.MemoryIndex` or `compmem.ExternalIndex`, or the folder of an index.
        llm: An LLM that is called once per question: it writes the answer from the recalled nodes, formatted with
            `MetadataMode.LLM`, and may ask for missing facts `RecallConfig.rounds` times. With
            `RecallConfig(reader="chat")` it reads in every step instead. No prompt is longer than its
            `metadata.context_window` allows: longer nodes are cut, or read in several calls. If `recall_config` names
            another reader or writer, it is not called.
        chat: Instead of `llm`, any callable from messages to text; see `compmem.ChatReader`.
        similarity_top_k: Maximum number of nodes that an LLM answers from, and the number from `retrieve`. None: as
            many as `RecallConfig.writer_blocks`, and 8. The loop reads as many as the question needs.
        filters: Which nodes may be recalled.
        recall_config: Settings of the loop, such as `RecallConfig(max_seconds=2)` for a timeout. None: those that
            the index or vector store was made with.
        streaming: Stream the answer.
        node_postprocessors: Applied to the nodes from `retrieve`; answers are then written from the remaining nodes.
            Quoted answers leave out those whose score is below the gate's threshold, unless a postprocessor changed it.
        prompts: Prompts that replace the default ones; see `get_prompts`.
        callback_manager: Legacy callbacks.
        object_map: Objects that retrieved `IndexNode`s refer to, by index id; if there are any, answers are written
            from the nodes of `retrieve`, as with postprocessors.
        verbose: Print when retrieval enters such an object.

    Raises:
        TypeError: The filters are of another type.
        ValueError: There is no index, both `llm` and `chat` are given, the LLM writes no text, similarity_top_k is
            below 1, or a filter or prompt is invalid.
    """

    def __init__(
        self,
        index: "HasMemory | BaseIndex | str | Path",
        llm: LLM | None = None,
        *,
        chat: ChatModel | None = None,
        similarity_top_k: int | None = None,
        filters: MetadataFilters | MetadataFilter | None = None,
        recall_config: RecallConfig | None = None,
        streaming: bool = False,
        node_postprocessors: Sequence[BaseNodePostprocessor] | None = None,
        prompts: dict[str, BasePromptTemplate] | None = None,
        callback_manager: CallbackManager | None = None,
        object_map: dict[str, Any] | None = None,
        verbose: bool = False,
    ) -> None:
        if llm is not None and chat is not None:
            raise ValueError("give llm= or chat=, not both")
        if llm is not None and not isinstance(llm, LLM):
            raise ValueError(f"llm= must be an LLM of LlamaIndex, not {type(llm).__name__}; a callable goes to chat=")
        if isinstance(llm, StructuredLLM):
            raise ValueError(
                "this engine writes the answer as text, so llm= cannot be a StructuredLLM: "
                "RetrieverQueryEngine.from_args(index.as_retriever(), llm=...) returns objects"
            )
        if similarity_top_k is not None:
            check_integer("similarity_top_k", similarity_top_k)
        if llm is None and chat is None and Settings._llm is not None:
            tell_of_unused_llm()
        super().__init__(callback_manager)
        self._memory = resolve_index(index)
        self._llm = llm
        self._chat = chat
        self._filter = to_filter(filters)
        recall_config = recall_config or recall_config_of(index) or RecallConfig()
        self._retriever = CompMemRetriever(
            self._memory,
            DEFAULT_TOP_K if similarity_top_k is None else similarity_top_k,
            filters,
            recall_config=recall_config,
            callback_manager=self.callback_manager,
            object_map=object_map,
            verbose=verbose,
        )
        if similarity_top_k is not None:
            recall_config = recall_config.replace(writer_blocks=similarity_top_k)
        self._recall_config = recall_config
        self.streaming = streaming
        self._node_postprocessors = list(node_postprocessors or [])
        self._prompts = compmem.ChatPrompts()
        if prompts:
            self.update_prompts(prompts)

    @classmethod
    def from_retriever(
        cls,
        retriever: BaseRetriever,
        llm: LLM | None = None,
        *,
        embed_model: BaseEmbedding | Encoder | None = None,
        candidates: int = DEFAULT_CANDIDATES,
        use_async: bool = True,
        **options: Any,
    ) -> Self:
        """An engine over any retriever: the loop queries it again with what was found, and nothing is indexed.

        Args:
            retriever: Returns nodes, with its own filters: `index.as_retriever(filters=...)`.
            llm: Reads and writes. None: the answer is quoted from the nodes.
            embed_model: Encodes sentences. None: CompMem's own encoder, whatever the store uses.
            candidates: Nodes to request for a question, if the retriever has a `similarity_top_k`.
            use_async: Await the retriever in an event loop, if it has its own async method. False: call it in a thread,
                for stores without an async client.
            **options: Other arguments of the engine.

        Raises:
            ValueError: It is not a retriever or is one over a CompMem index, or candidates is below 1.
        """
        index = external_index(retriever, embed_model=embed_model, candidates=candidates, use_async=use_async)
        return cls(index, llm, **options)

    @property
    def memory(self) -> "BaseIndex":
        """The index."""
        return self._memory

    @property
    def retriever(self) -> CompMemRetriever:
        """The retriever of `retrieve`."""
        return self._retriever

    def with_streaming(self, streaming: bool) -> "CompMemQueryEngine":
        """This engine, or a copy over the same index, with or without streaming."""
        if streaming == self.streaming:
            return self
        other = copy.copy(self)
        other.streaming = streaming
        return other

    # Prompts

    def _get_prompt_modules(self) -> PromptMixinType:
        return {}

    def _get_prompts(self) -> PromptDictType:
        return to_templates(self._prompts) if self._has_model else {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if not self._has_model:
            raise ValueError("this engine calls no LLM, so it has no prompts: give it llm= or chat=")
        self._prompts = with_templates(self._prompts, prompts)

    @property
    def _has_model(self) -> bool:
        return self._llm is not None or self._chat is not None

    # Parts of a query engine

    def retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """The nodes that the question needs, best first."""
        return self._postprocess(self._retriever.retrieve(query_bundle), query_bundle)

    async def aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        """`retrieve` for an event loop."""
        return await self._apostprocess(await self._retriever.aretrieve(query_bundle), query_bundle)

    def _postprocess(self, nodes: list[NodeWithScore], query_bundle: QueryBundle) -> list[NodeWithScore]:
        for postprocessor in self._node_postprocessors:
            nodes = postprocessor.postprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    async def _apostprocess(self, nodes: list[NodeWithScore], query_bundle: QueryBundle) -> list[NodeWithScore]:
        for postprocessor in self._node_postprocessors:
            nodes = await postprocessor.apostprocess_nodes(nodes, query_bundle=query_bundle)
        return nodes

    def synthesize(
        self,
        query_bundle: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """The answer from these nodes alone, which are all read in order."""
        memory = index_of_nodes(self._memory, nodes)
        builder = ResponseBuilder(
            _bundle(query_bundle), self.callback_manager, [*nodes, *(additional_source_nodes or [])]
        )
        reader = self._reader(sync_chat, node_contents(nodes))
        return self._ask(builder, memory, read_all_config(self._recall_config, len(nodes)), reader, None)

    async def asynthesize(
        self,
        query_bundle: QueryType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
    ) -> RESPONSE_TYPE:
        """`synthesize` for an event loop."""
        memory = await asyncio.to_thread(index_of_nodes, self._memory, nodes)
        builder = ResponseBuilder(
            _bundle(query_bundle), self.callback_manager, [*nodes, *(additional_source_nodes or [])]
        )
        reader = self._reader(async_chat, node_contents(nodes))
        return await self._aask(builder, memory, read_all_config(self._recall_config, len(nodes)), reader, None)

    def _query(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            if self._answers_from_retrieved:
                found = self._retriever.retrieve(query_bundle)
                scores = scores_by_id(found)
                nodes = self._above_threshold(self._postprocess(found, query_bundle), scores)
                response = self.synthesize(query_bundle, nodes)
            else:
                builder = ResponseBuilder(query_bundle, self.callback_manager)
                response = self._ask(builder, self._memory, self._recall_config, self._reader(sync_chat), self._filter)
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    async def _aquery(self, query_bundle: QueryBundle) -> RESPONSE_TYPE:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: query_bundle.query_str}
        with self.callback_manager.event(CBEventType.QUERY, payload=payload) as event:
            if self._answers_from_retrieved:
                found = await self._retriever.aretrieve(query_bundle)
                scores = scores_by_id(found)
                nodes = self._above_threshold(await self._apostprocess(found, query_bundle), scores)
                response = await self.asynthesize(query_bundle, nodes)
            else:
                builder = ResponseBuilder(query_bundle, self.callback_manager)
                response = await self._aask(
                    builder, self._memory, self._recall_config, self._reader(async_chat), self._filter
                )
            event.on_end(payload={EventPayload.RESPONSE: response})
        return response

    @property
    def _answers_from_retrieved(self) -> bool:
        """Whether answers are written from the nodes of `retrieve`."""
        return bool(self._node_postprocessors or self._retriever.object_map)

    def _above_threshold(self, nodes: list[NodeWithScore], scores: Mapping[str, float | None]) -> list[NodeWithScore]:
        """The nodes to quote from; all if a language model reads them, or if their scores are not the gate's."""
        settings = LoopConfig.complete(self._recall_config)
        asks = self._has_model and settings.uses_chat
        quotes = settings.reader in (None, "extractive") and settings.writer is None
        if asks or not quotes or self._memory.config.memory == "kv" or settings.gate != "learned":
            return nodes
        threshold = self._memory.gate.threshold if settings.threshold is None else settings.threshold
        # An answer of an object has the score of the node that refers to it, which may say little about it.
        return nodes_above_threshold(nodes, threshold, scores) or (nodes[:1] if self._retriever.object_map else [])

    def _reader(self, chat_of: Any, render: Callable[[Chunk], str | None] = llm_content) -> "compmem.ChatReader | None":
        """The chat model as a reader; None if it has nothing to do with these settings."""
        settings = self._recall_config
        chat = self._chat if self._llm is None else chat_of(self._llm, streaming=self.streaming)
        if chat is None or not settings.uses_chat:
            return None
        limits: dict[str, Any] = {}
        if self._llm is not None:
            limit = prompt_tokens(self._llm, settings.memory_tokens, settings.prompt_tokens)
            limits = {"prompt_tokens": limit, "count": count_tokens}
        return compmem.ChatReader.from_config(chat, settings, prompts=self._prompts, render=render, **limits)

    def _ask(
        self,
        builder: ResponseBuilder,
        memory: "BaseIndex",
        config: RecallConfig,
        chat: "compmem.ChatReader | None",
        filter: dict[str, Any] | None,
    ) -> RESPONSE_TYPE:
        events = memory.stream(builder.question, config, filter=filter, wrap=builder.watched, chat=chat)
        with builder.tracing():
            pieces = builder.pieces(builder.run_loop(events), events)
            if self.streaming:
                return builder.finish(StreamingResponse(pieces, builder.nodes, builder.metadata))
            for _ in pieces:
                pass
            return builder.finish(Response(builder.text, builder.nodes, builder.metadata))

    async def _aask(
        self,
        builder: ResponseBuilder,
        memory: "BaseIndex",
        config: RecallConfig,
        chat: "compmem.ChatReader | None",
        filter: dict[str, Any] | None,
    ) -> RESPONSE_TYPE:
        events = memory.astream(builder.question, config, filter=filter, wrap=builder.watched, chat=chat)
        with builder.tracing():
            pieces = builder.apieces(await builder.arun_loop(events), events)
            if self.streaming:
                return builder.finish(AsyncStreamingResponse(pieces, builder.nodes, builder.metadata))
            async for _ in pieces:
                pass
            return builder.finish(Response(builder.text, builder.nodes, builder.metadata))


def _bundle(query: QueryType) -> QueryBundle:
    return QueryBundle(query) if isinstance(query, str) else query
