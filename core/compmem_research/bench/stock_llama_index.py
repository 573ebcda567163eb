"""LlamaIndex as in its documentation, over the vectors of our index."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from llama_index.core import VectorStoreIndex
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.llms import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    CompletionResponseGen,
    CustomLLM,
    LLMMetadata,
    MessageRole,
)
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.prompts.chat_prompts import CHAT_TEXT_QA_PROMPT
from llama_index.core.schema import MetadataMode, TextNode
from pydantic import PrivateAttr

from compmem.encoder import LoadedEncoder
from compmem.index import MemoryIndex
from compmem_research.bench.answers_model import MeteredChat
from compmem_research.bench.answers_types import Setup, System, SystemReply


def query_engine(setup: Setup) -> System:
    """`VectorStoreIndex(...).as_query_engine()`: the stock prompt, with the instruction after the question."""
    index = VectorStoreIndex(nodes_of(setup.index), embed_model=Embedding(setup.index.encoder))
    words = f" {setup.instruction}".rstrip()  # this framework keeps other braces
    template = ChatPromptTemplate(
        [
            ChatMessage(role=m.role, content=str(m.content).replace("{query_str}", "{query_str}" + words))
            for m in CHAT_TEXT_QA_PROMPT.message_templates
            if isinstance(m, ChatMessage)
        ]
    )
    engine = index.as_query_engine(llm=_Model(setup), similarity_top_k=setup.k, text_qa_template=template)

    def system(question: str) -> SystemReply:
        response = engine.query(question)
        context = tuple(found.node.get_content(metadata_mode=MetadataMode.LLM) for found in response.source_nodes)
        return SystemReply(text=str(response), context=context)

    return system


def nodes_of(index: MemoryIndex) -> list[TextNode]:
    """One node per block, with the vector from the index and the passage's number as its id."""
    with index.store.snapshot() as snapshot:
        blocks = snapshot.select(None)
        [vectors] = snapshot.vectors_by_folder()
        rows = zip(snapshot.chunks(blocks), vectors.of(blocks), strict=True)
        return [
            TextNode(
                id_=str(UUID(int=int(chunk.document_id))),
                text=chunk.text,
                metadata={"title": chunk.title},
                embedding=vector.tolist(),
            )
            for chunk, vector in rows
        ]


class Embedding(BaseEmbedding):
    """The encoder of an index as an embedding model of LlamaIndex."""

    _encoder: LoadedEncoder = PrivateAttr()

    def __init__(self, encoder: LoadedEncoder) -> None:
        super().__init__()
        self._encoder = encoder

    def _get_text_embedding(self, text: str) -> list[float]:
        return [float(x) for x in self._encoder.encode([text])[0]]

    def _get_query_embedding(self, query: str) -> list[float]:
        return [float(x) for x in self._encoder.encode_query([query])[0]]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)


class _Model(CustomLLM):
    """The chat model of the comparison as an LLM of LlamaIndex."""

    _chat: MeteredChat = PrivateAttr()
    _metadata: LLMMetadata = PrivateAttr()

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self._chat = setup.chat
        self._metadata = LLMMetadata(
            is_chat_model=True, context_window=setup.context_window, num_output=setup.max_tokens, model_name="compared"
        )

    @property
    def metadata(self) -> LLMMetadata:
        """The limits to which the framework fits prompts."""
        return self._metadata

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """One call."""
        text = self._chat([{"role": m.role.value, "content": str(m.content)} for m in messages])
        return ChatResponse(message=ChatMessage(role=MessageRole.ASSISTANT, content=text))

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """One call with the prompt as a user message."""
        return CompletionResponse(text=self._chat([{"role": "user", "content": prompt}]))

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """The whole reply as one piece."""
        yield self.complete(prompt, formatted)
