"""The chat engine: makes each message standalone, then answers it from the index."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator
from typing import Any

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, MessageRole
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.callbacks import CallbackManager, trace_method
from llama_index.core.chat_engine.types import AgentChatResponse, BaseChatEngine, StreamingAgentChatResponse
from llama_index.core.chat_engine.utils import aresponse_gen_from_query_engine, response_gen_from_query_engine
from llama_index.core.llms import LLM
from llama_index.core.memory import BaseMemory, ChatMemoryBuffer
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.tools import ToolOutput
from llama_index.core.types import Thread
from llama_index.core.utils import print_text

from llama_index_compmem.condense_question import CONDENSE, acondense, condense, condense_by_rule, condense_template
from llama_index_compmem.query_engine import CompMemQueryEngine

logger = logging.getLogger(__name__)


class CompMemChatEngine(BaseChatEngine):
    """A conversation over an index. One engine is one conversation.

    A follow-up message is first made standalone: by the LLM, or without one by a simple rule (a message with a pronoun,
    or a very short one, is asked together with the names in the last answer). Then the query engine answers it. A
    message and its answer are added to the history together when the answer is complete; if one fails, neither is
    added.

    Args:
        query_engine: Answers the messages.
        llm: Makes messages standalone.
        memory: The chat history. Default: a buffer in this process.
        chat_history: The beginning of the conversation.
        condense_prompt: The prompt for the LLM, a template or a text; fields `chat_history` and `question`.
        callback_manager: Legacy callbacks. Default: the query engine's.
        verbose: Print each question that is asked.

    Raises:
        ValueError: The chat history or the prompt is invalid.
        TypeError: The query engine is something else, or the prompt is no template.
    """

    def __init__(
        self,
        query_engine: CompMemQueryEngine,
        llm: LLM | None = None,
        *,
        memory: BaseMemory | None = None,
        chat_history: list[ChatMessage] | None = None,
        condense_prompt: BasePromptTemplate | str = CONDENSE,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
    ) -> None:
        if not isinstance(query_engine, CompMemQueryEngine):
            raise TypeError(
                "query_engine= must be a CompMemQueryEngine (index.as_query_engine(...)), "
                f"not {type(query_engine).__name__}"
            )
        self._engine = query_engine
        self._llm = llm
        self._verbose = verbose
        self._memory = memory if memory is not None else ChatMemoryBuffer.from_defaults()
        self._condense_prompt = condense_template(condense_prompt)
        self.callback_manager = callback_manager or query_engine.callback_manager
        if chat_history is not None:
            self._memory.set(_checked_history(chat_history))

    @property
    def query_engine(self) -> CompMemQueryEngine:
        """What answers."""
        return self._engine

    @property
    def chat_history(self) -> list[ChatMessage]:
        """The conversation so far."""
        return self._memory.get_all()

    def reset(self) -> None:
        """Starts a new conversation."""
        self._memory.reset()

    @trace_method("chat")
    def chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """The answer to a message; `chat_history` replaces the conversation so far."""
        question = self._standalone(message, chat_history)
        response = self._engine.with_streaming(False).query(question)
        assert isinstance(response, Response)
        self._memory.put_messages(_turn(message, str(response)))
        return _chat_response(question, response)

    @trace_method("chat")
    async def achat(self, message: str, chat_history: list[ChatMessage] | None = None) -> AgentChatResponse:
        """`chat` for an event loop."""
        question = await self._astandalone(message, chat_history)
        response = await self._engine.with_streaming(False).aquery(question)
        assert isinstance(response, Response)
        await self._memory.aput_messages(_turn(message, str(response)))
        return _chat_response(question, response)

    @trace_method("chat")
    def stream_chat(self, message: str, chat_history: list[ChatMessage] | None = None) -> StreamingAgentChatResponse:
        """The streamed answer to a message."""
        question = self._standalone(message, chat_history)
        response = self._engine.with_streaming(True).query(question)
        assert isinstance(response, StreamingResponse)
        streamed = StreamingAgentChatResponse(
            chat_stream=self._record_message(message, response_gen_from_query_engine(response.response_gen)),
            sources=[_output(question, response)],
            source_nodes=response.source_nodes,
        )
        thread = Thread(target=_write_history, args=(streamed, self._memory), daemon=True)
        streamed.write_response_to_history_thread = thread
        thread.start()
        return streamed

    @trace_method("chat")
    async def astream_chat(
        self, message: str, chat_history: list[ChatMessage] | None = None
    ) -> StreamingAgentChatResponse:
        """`stream_chat` for an event loop."""
        question = await self._astandalone(message, chat_history)
        response = await self._engine.with_streaming(True).aquery(question)
        assert isinstance(response, AsyncStreamingResponse)
        streamed = StreamingAgentChatResponse(
            achat_stream=self._arecord_message(message, aresponse_gen_from_query_engine(response.response_gen)),
            sources=[_output(question, response)],
            source_nodes=response.source_nodes,
        )
        streamed._ensure_async_setup()
        streamed.awrite_response_to_history_task = asyncio.create_task(
            streamed.awrite_response_to_history(self._memory)
        )
        return streamed

    def _standalone(self, message: str, chat_history: list[ChatMessage] | None) -> str:
        _check_message(message)
        if chat_history is not None:
            self._memory.set(_checked_history(chat_history))
        history = self._memory.get(input=message)
        if self._llm is None:
            return self._show_question(condense_by_rule(history, message))
        return self._show_question(condense(self._llm, self._condense_prompt, history, message))

    async def _astandalone(self, message: str, chat_history: list[ChatMessage] | None) -> str:
        _check_message(message)
        if chat_history is not None:
            await self._memory.aset(_checked_history(chat_history))
        history = await self._memory.aget(input=message)
        if self._llm is None:
            return self._show_question(condense_by_rule(history, message))
        return self._show_question(await acondense(self._llm, self._condense_prompt, history, message))

    def _show_question(self, question: str) -> str:
        """The question, which is printed as the framework's engine does."""
        if self._verbose:
            print_text(f"Querying with: {question}", end="\n")
        return question

    def _record_message(self, message: str, stream: Any) -> Generator[ChatResponse, None, None]:
        """The stream; the message is added to the history before the framework adds the answer."""
        yield from stream
        self._memory.put(ChatMessage(role=MessageRole.USER, content=message))

    async def _arecord_message(self, message: str, stream: Any) -> AsyncGenerator[ChatResponse, None]:
        async for response in stream:
            yield response
        await self._memory.aput(ChatMessage(role=MessageRole.USER, content=message))


def _write_history(streamed: StreamingAgentChatResponse, memory: BaseMemory) -> None:
    """Adds the answer to the history; a reader of the stream gets the error that is stored with it."""
    try:
        streamed.write_response_to_history(memory)
    except Exception:
        logger.debug("a streamed answer failed", exc_info=True)


def _turn(message: str, answer: str) -> list[ChatMessage]:
    return [
        ChatMessage(role=MessageRole.USER, content=message),
        ChatMessage(role=MessageRole.ASSISTANT, content=answer),
    ]


def _chat_response(question: str, response: Response) -> AgentChatResponse:
    return AgentChatResponse(
        response=str(response),
        sources=[_output(question, response)],
        source_nodes=response.source_nodes,
        metadata=response.metadata,
    )


def _output(question: str, response: Response | StreamingResponse | AsyncStreamingResponse) -> ToolOutput:
    content = str(response) if isinstance(response, Response) else ""
    return ToolOutput(content=content, tool_name="query_engine", raw_input={"query": question}, raw_output=response)


def _check_message(message: object) -> None:
    if not isinstance(message, str) or not message.strip():
        raise ValueError(f"message={message!r} must be a text that is not blank")


def _checked_history(history: object) -> list[ChatMessage]:
    if not isinstance(history, list) or not all(isinstance(m, ChatMessage) for m in history):
        raise ValueError(f"chat_history= must be a list of ChatMessage, not {type(history).__name__}")
    return list(history)  # some memories keep a reference to the given list
