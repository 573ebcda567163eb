"""The reasoner: the loop as a runnable, for chains, graphs and chat bots."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Any, Self, cast

from langchain_core.callbacks import AsyncCallbackManagerForChainRun, CallbackManagerForChainRun
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import BasePromptTemplate
from langchain_core.runnables import RunnableConfig, RunnableSerializable, patch_config
from langchain_core.tools import BaseTool, StructuredTool
from pydantic import BaseModel, ConfigDict, Field, InstanceOf

import compmem
from compmem import AnswerToken, ReaderError, RecallConfig
from compmem.config import DEFAULT_CANDIDATES
from compmem.text.follow_up import standalone_question
from compmem.threads import in_thread
from langchain_compmem.chat import (
    CONDENSE_PROMPT,
    NOSTREAM,
    CallContext,
    ChatCalls,
    ChatModel,
    CondensePrompt,
    conversation_of,
)
from langchain_compmem.documents import Filter, Index, Prompts, chunk_formatter, combine_filters
from langchain_compmem.errors import ReasoningError
from langchain_compmem.external import Wrappable, external_index
from langchain_compmem.io_types import (
    Input,
    ParsedInput,
    ReasonerInput,
    ReasonerOutput,
    format_tool_output,
    joined,
    merge_parts,
    output_part,
    parse,
)
from langchain_compmem.retriever import refuse
from langchain_compmem.tool import errors_for_agent
from langchain_compmem.tracing import AsyncTracingReader, QuestionTrace, TracingReader


class QuestionArguments(BaseModel):
    """Arguments of the tool for agents."""

    question: str = Field(description="The whole question, with full names; it must be clear without context.")


class CompMemReasoner(RunnableSerializable[Input, ReasonerOutput]):
    """Answers a question from an index: recalls and reads blocks until its notes suffice.

    It takes a string, a dict with `question`, or a conversation: a list of messages, what a prompt template makes, or a
    dict with `messages`, such as the state of a graph. The last message of the user is then the question, and the
    output has the answer in `messages` too. System messages at its beginning are added to the prompt for the answer.

    Without a chat model it quotes the sentences that are relevant to the question. Over KV memory, the index's own
    backbone writes the answer, and reads in every step if it was trained for that. A chat model is called once: it
    writes the answer from the recalled blocks, and may ask for missing facts `RecallConfig.rounds` times. A follow-up
    question to a conversation is made standalone first, by the chat model, or without one by a simple rule: to a
    question with a pronoun it adds names of the last question and answer. A question that asks several things is
    searched part by part, and `request` of a step names the part. With `RecallConfig(reader="chat")`, the model reads
    in every step, and the question is not split. If `recall_config` names another reader or writer, the model only
    makes questions standalone. No prompt is longer than `RecallConfig.prompt_tokens` or, without it, the model's
    `profile["max_input_tokens"]`, if it has one.

    A stream yields `AddableDict`s that add up to the output: each step, the answer in pieces, and at the end the
    documents, the working memory and the usage.

    Example:
        >>> reasoner = CompMemReasoner(index="handbook.mem", chat_model=model)
        >>> reasoner.invoke("Who insures the building that Acme rents?")["answer"]
    """

    index: Index
    """The index, or the path of its folder."""
    chat_model: ChatModel | None = None
    """Any `BaseChatModel`, or one with retries, fallbacks or bound arguments. None: answers are quotations."""
    recall_config: InstanceOf[RecallConfig] | None = None
    """Settings of the loop: reader, writer, steps, seconds. None: the defaults."""
    reader: Any = None
    """An object that reads and writes, instead of the chat model; see `compmem.Reader`."""
    filter: Filter | None = None
    """Metadata filter for every question; a question's own filter holds together with it."""
    prompts: Prompts = None
    """The prompts for reading and answering with the chat model."""
    document_prompt: BasePromptTemplate[str] | None = None
    """Formats a document for the chat model, from `page_content` and metadata that every document has. None: the title,
    the metadata that is searched, and the text."""
    condense_prompt: CondensePrompt = CONDENSE_PROMPT
    """The prompt that makes a follow-up question standalone; variables `chat_history` and `question`."""

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")  # without its filter, all documents match

    @classmethod
    def from_retriever(
        cls,
        retriever: Wrappable,
        chat_model: ChatModel | None = None,
        *,
        embeddings: Embeddings | None = None,
        candidates: int = DEFAULT_CANDIDATES,
        metadata_keys: Sequence[str] = (),
        **fields: Any,
    ) -> Self:
        """A reasoner over any retriever or vector store: the loop queries it, and nothing is indexed.

        A `filter` is passed to it unchanged.

        Args:
            retriever: Returns documents for a question; also one with retries, fallbacks or a config.
            chat_model: Writes the answer. None: answers are quotations.
            embeddings: Encodes sentences. None: CompMem's own encoder, whatever the store uses.
            candidates: Documents to request for a question, if the retriever has a setting for their number.
            metadata_keys: Metadata that questions may ask about, such as `author`.
            **fields: Other fields of the reasoner, such as `recall_config`.

        Raises:
            ValueError: It is neither a retriever nor a vector store, or one of an index of CompMem; or candidates is
                below 1.
        """
        index = external_index(retriever, embeddings=embeddings, candidates=candidates, metadata_keys=metadata_keys)
        return cls(index=index, chat_model=chat_model, **fields)

    def invoke(
        self,
        input: Input,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> ReasonerOutput:
        """The answer.

        Args:
            input: A question or a conversation.
            config: Callbacks, tags and metadata of the run.
            filter: The filter of the question, as in the input.
            **kwargs: Not supported.

        Raises:
            ValueError: The input, its chat history or its filter is invalid, or the input has another filter than the
                call.
            TypeError: An argument is unknown.
            ReasoningError: The chat model failed; the error carries the steps so far.
        """
        refuse("invoke", kwargs)
        return self._call_with_config(partial(self._invoke, filter=filter), input, config)

    async def ainvoke(
        self,
        input: Input,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> ReasonerOutput:
        """`invoke` for an event loop, without blocking it; cancelling it ends the work within one step."""
        refuse("ainvoke", kwargs)
        return await self._acall_with_config(partial(self._ainvoke, filter=filter), input, config)

    def stream(
        self,
        input: Input,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> Iterator[ReasonerOutput]:
        """Parts of the output as they are made; their sum is the output."""
        refuse("stream", kwargs)
        yield from self.transform(iter([input]), config, filter=filter)

    async def astream(
        self,
        input: Input,  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ReasonerOutput, None]:
        """`stream` for an event loop; closing or cancelling it ends the work within one step."""
        refuse("astream", kwargs)
        async with aclosing(self.atransform(_single_output(input), config, filter=filter)) as parts:
            async for part in parts:
                yield part

    def transform(
        self,
        input: Iterator[Input],  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> Iterator[ReasonerOutput]:
        """`stream` of an input that comes in parts."""
        refuse("transform", kwargs)
        yield from self._transform_stream_with_config(input, partial(self._transform, filter=filter), config)

    async def atransform(
        self,
        input: AsyncIterator[Input],  # noqa: A002
        config: RunnableConfig | None = None,
        *,
        filter: Filter | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[ReasonerOutput, None]:
        """`astream` of an input that comes in parts."""
        refuse("atransform", kwargs)
        parts = self._atransform_stream_with_config(input, partial(self._atransform, filter=filter), config)
        async with aclosing(cast("AsyncGenerator[ReasonerOutput, None]", parts)) as closed:
            async for part in closed:
                yield part

    def as_tool(
        self,
        args_schema: type[BaseModel] | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        arg_types: dict[str, type] | None = None,
    ) -> BaseTool:
        """A tool for agents: its content is the answer with sources, its artifact the whole output.

        Sources have their numbers in the output's `context`; if the answer cites any, only those are named.
        To a blank question or a wrong filter it replies with a message that has the status `error`.

        Args:
            args_schema: Arguments from the agent: `question`, and other keys of `ReasonerInput`. None: the question
                alone. A filter from the agent holds together with the reasoner's own.
            name: Name of the tool.
            description: When the agent should use it.
            arg_types: Not supported: use `args_schema`.

        Raises:
            ValueError: `arg_types` is given, or the schema has no `question` or an unknown argument.
        """
        if arg_types is not None:
            raise ValueError("as_tool takes args_schema=, not arg_types=")
        schema, known = args_schema or QuestionArguments, ReasonerInput.__annotations__.keys()
        if "question" not in schema.model_fields or schema.model_fields.keys() - known:
            raise ValueError(f"args_schema must have 'question', and may have others of {sorted(known)} alone")

        # the tool's run is in the context, so it is the parent
        def ask(question: Any, **others: Any) -> tuple[str, ReasonerOutput]:
            with errors_for_agent(question):
                output = self.invoke(cast("Input", {"question": question, **others}))
            return format_tool_output(output), output

        async def aask(question: Any, **others: Any) -> tuple[str, ReasonerOutput]:
            with errors_for_agent(question):
                output = await self.ainvoke(cast("Input", {"question": question, **others}))
            return format_tool_output(output), output

        return StructuredTool.from_function(
            ask,
            aask,
            name=name or "answer_from_memory",
            description=description or "Answers a question from the indexed documents, also from several of them.",
            args_schema=schema,
            response_format="content_and_artifact",
            handle_tool_error=True,
        )

    def _invoke(
        self, given: Input, run_manager: CallbackManagerForChainRun, config: RunnableConfig, filter: Filter | None
    ) -> ReasonerOutput:
        return merge_parts(list(self._stream_parts(given, run_manager, config, filter, stream=False)))

    async def _ainvoke(
        self, given: Input, run_manager: AsyncCallbackManagerForChainRun, config: RunnableConfig, filter: Filter | None
    ) -> ReasonerOutput:
        async with aclosing(self._astream_parts(given, run_manager, config, filter, stream=False)) as parts:
            return merge_parts([part async for part in parts])

    def _transform(
        self,
        inputs: Iterator[Input],
        run_manager: CallbackManagerForChainRun,
        config: RunnableConfig,
        filter: Filter | None,
    ) -> Iterator[ReasonerOutput]:
        yield from self._stream_parts(joined(list(inputs)), run_manager, config, filter, stream=True)

    async def _atransform(
        self,
        inputs: AsyncIterator[Input],
        run_manager: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        filter: Filter | None,
    ) -> AsyncGenerator[ReasonerOutput, None]:
        asked = joined([part async for part in inputs])
        async with aclosing(self._astream_parts(asked, run_manager, config, filter, stream=True)) as parts:
            async for part in parts:
                yield part

    def _stream_parts(
        self,
        given: Input,
        run: CallbackManagerForChainRun,
        config: RunnableConfig,
        filter: Filter | None,
        *,
        stream: bool,
    ) -> Iterator[ReasonerOutput]:
        asked = self._parse_input(given, filter)
        chat = self._chat(asked.system, stream=stream)
        try:
            if chat is not None and asked.history:
                chat.begin(_standalone(config, run))
                asked = asked._replace(question=chat.condense(self.condense_prompt, asked.question, asked.history))
            models = self._models(chat, None if chat is None else chat.ask)
            wrap = partial(TracingReader, QuestionTrace(self.index, asked.question, config, chat), run)
            events = self.index.stream(asked.question, self.recall_config, filter=asked.filter, wrap=wrap, **models)
            with closing(events):
                for event in events:
                    yield output_part(event, chat, self.index, replies=asked.as_message)
        except ReaderError as error:
            raise ReasoningError(str(error), error.steps) from error

    async def _astream_parts(
        self,
        given: Input,
        run: AsyncCallbackManagerForChainRun,
        config: RunnableConfig,
        filter: Filter | None,
        *,
        stream: bool,
    ) -> AsyncGenerator[ReasonerOutput, None]:
        asked = self._parse_input(given, filter)
        chat = self._chat(asked.system, stream=stream)
        try:
            if chat is not None and asked.history:
                chat.begin(_standalone(config, run))
                question = await chat.acondense(self.condense_prompt, asked.question, asked.history)
                asked = asked._replace(question=question)
            models = self._models(chat, None if chat is None else chat.aask)
            wrap = partial(AsyncTracingReader, QuestionTrace(self.index, asked.question, config, chat), run)
            events = self.index.astream(asked.question, self.recall_config, filter=asked.filter, wrap=wrap, **models)
            async with aclosing(events):
                async for event in events:
                    part = partial(output_part, event, chat, self.index, replies=asked.as_message)
                    # a step and the answer look up documents in the index
                    yield part() if isinstance(event, AnswerToken) else await in_thread(part)
        except ReaderError as error:
            raise ReasoningError(str(error), error.steps) from error

    def _parse_input(self, given: object, filter: Filter | None) -> ParsedInput:
        """The checked input and filter of the call; without a chat model, a rule makes its question standalone."""
        asked = parse(given)
        if filter is not None:
            if asked.filter is not None and asked.filter != filter:
                raise ValueError("the input has another filter than filter=: give one of them")
            asked = asked._replace(filter=filter)
        if self.chat_model is None:
            roles = {"human": "user", "ai": "assistant"}
            turns = conversation_of(asked.history)
            history = [{"role": roles.get(m.type, m.type), "content": str(m.text)} for m in turns]
            asked = asked._replace(question=standalone_question(history, asked.question))
        return asked._replace(filter=combine_filters(self.index, self.filter, asked.filter))

    def _chat(self, system: str, *, stream: bool) -> ChatCalls | None:
        if self.chat_model is None:
            return None
        limit = None if self.recall_config is None else self.recall_config.prompt_tokens
        return ChatCalls(self.chat_model, limit, system=system, stream=stream)

    def _models(self, chat: ChatCalls | None, ask: Callable[..., Any] | None) -> "compmem.AnswerModels":
        """The models for one question; the chat model only if it has something to do with these settings."""
        if self.reader is not None:
            return {"reader": self.reader}
        settings = self.recall_config or RecallConfig()
        if chat is None or ask is None or not settings.uses_chat:
            return {}
        limits: dict[str, Any] = {}
        if chat.window.tokens is not None:
            left = chat.window.tokens - (chat.window.count(chat.system) if chat.system else 0)
            limits = {"prompt_tokens": max(left, 1), "count": chat.window.count}
        render = None if self.document_prompt is None else chunk_formatter(self.document_prompt)
        reader = compmem.ChatReader.from_config(ask, settings, prompts=self.prompts, render=render, **limits)
        return {"chat": reader}


def _standalone(
    config: RunnableConfig, run: CallbackManagerForChainRun | AsyncCallbackManagerForChainRun
) -> CallContext:
    manager = run.get_child("standalone")
    manager.add_tags([NOSTREAM])
    return CallContext(patch_config(config, callbacks=manager, run_name="standalone question"), False)


async def _single_output(given: Input) -> AsyncGenerator[Input, None]:
    yield given
