"""A LangChain chat model as a callable for CompMem's chat reader, inside the current run."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, NamedTuple

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.messages.ai import UsageMetadata, add_usage
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate, ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import AfterValidator, WithJsonSchema

from compmem import ReaderError
from compmem.errors import chat_failure
from langchain_compmem.window import window_of

Messages = Sequence[Mapping[str, str]]

ChatModel = Annotated[Runnable[LanguageModelInput, BaseMessage], WithJsonSchema({})]
"""Any `BaseChatModel`, or one with retries, fallbacks or bound arguments."""

Prompt = Runnable[dict[str, Any], PromptValue]
"""Any prompt template."""


def _with_question(prompt: Prompt) -> Prompt:
    names = set(getattr(prompt, "input_variables", ("question",)))  # any other runnable takes what it is given
    if "question" not in names or names - {"question", "chat_history"}:
        raise ValueError(
            f"condense_prompt must have the variables question and chat_history alone, not {sorted(names)}"
        )
    return prompt


CondensePrompt = Annotated[Prompt, AfterValidator(_with_question), WithJsonSchema({})]
"""A prompt template with the variables `question` and `chat_history`."""

NOSTREAM = "nostream"
"""Tag of the calls whose text LangGraph's `stream_mode="messages"` leaves out."""

MAX_QUESTION_CHARS = 2_000
"""Maximum number of characters of a standalone question from a chat model; a longer reply is not a question."""

CONDENSE_PROMPT: Prompt = ChatPromptTemplate.from_messages(
    [
        (
            "system",
            "Below is a conversation and then the newest question of it. Rewrite that question so that it can be "
            "understood without the conversation: put names in the place of words that refer back. Do not answer it. "
            "If it needs no change, repeat it. Reply with the question alone.",
        ),
        MessagesPlaceholder("chat_history"),
        ("human", "{question}"),
    ]
)
"""The prompt that makes a follow-up question standalone; variables `chat_history` and `question`."""


class CallContext(NamedTuple):
    """The run that the next calls of the model belong to."""

    config: RunnableConfig
    """The caller's config, with the current run as parent."""
    answers: bool
    """Whether the reply may be the answer."""


class ChatCalls:
    """The chat model for one question: sync as `ask`, async as `aask`.

    Args:
        model: The chat model.
        prompt_tokens: Maximum number of tokens of a prompt. None: as its profile says.
        system: Instructions of the conversation, added to the system message of the answer alone.
        stream: Stream the answer; otherwise every reply comes whole, so that retries, fallbacks and caches work.
    """

    def __init__(
        self, model: ChatModel, prompt_tokens: int | None = None, *, system: str = "", stream: bool = False
    ) -> None:
        self.model = model
        self.window = window_of(model, prompt_tokens)
        self.system = system
        self.stream = stream
        self.call_context = CallContext({}, False)
        self.calls = 0
        self.condense_calls = 0
        self.reply_id: str | None = None
        """The id of the newest reply."""
        self.answer_id: str | None = None
        """The id of the reply that the answer's text is from; None if no model wrote it."""
        self.usage: UsageMetadata | None = None
        self._counted: set[int] = set()

    @property
    def counted(self) -> UsageMetadata | None:
        """Tokens counted by the model; None if a call had no count."""
        return self.usage if len(self._counted) == self.calls else None

    def ask(self, messages: Messages) -> Iterator[Any]:
        """The reply in pieces."""
        self.calls += 1
        if self.stream and self.call_context.answers:
            for piece in self.model.stream(self._input(messages), self.call_context.config):
                yield self.text(piece)
        else:
            yield self.text(self.model.invoke(self._input(messages), self.call_context.config))

    async def aask(self, messages: Messages) -> AsyncIterator[Any]:
        """The reply in pieces."""
        self.calls += 1
        if self.stream and self.call_context.answers:
            async for piece in self.model.astream(self._input(messages), self.call_context.config):
                yield self.text(piece)
        else:
            yield self.text(await self.model.ainvoke(self._input(messages), self.call_context.config))

    def begin(self, context: CallContext) -> None:
        """The next calls belong to this context."""
        self.call_context, self.reply_id = context, None

    def _input(self, messages: Messages) -> list[dict[str, Any]]:
        first, *others = (dict(message) for message in messages)
        if self.system and self.call_context.answers:
            first["content"] = f"{first['content']}\n\n{self.system}"
        return [first, *others]

    def text(self, reply: object) -> Any:
        """The text of a reply or a piece of it; what is no message is returned unchanged, and the reader refuses it."""
        if not isinstance(reply, BaseMessage):
            return reply
        self.reply_id = self.reply_id or reply.id
        # a reply from a cache may have a cost alone
        if isinstance(reply, AIMessage) and reply.usage_metadata and "input_tokens" in reply.usage_metadata:
            self._counted.add(self.calls)
            self.usage = add_usage(self.usage, reply.usage_metadata)
        return str(reply.text)

    def condense(self, prompt: Prompt, question: str, history: list[BaseMessage]) -> str:
        """The question rewritten to be independent of the conversation; if that is long, only its end is used.

        Raises:
            ReaderError: The model failed.
        """
        try:
            if (asked := self._condense_input(prompt, question, history)) is None:
                return question
            self.calls, self.condense_calls = self.calls + 1, 1
            reply = (prompt | self.model).invoke(asked, self.call_context.config)
        except Exception as error:
            raise chat_failure(error) from error
        return self._question(reply, question)

    async def acondense(self, prompt: Prompt, question: str, history: list[BaseMessage]) -> str:
        """`condense` for an event loop."""
        try:
            if (asked := self._condense_input(prompt, question, history)) is None:
                return question
            self.calls, self.condense_calls = self.calls + 1, 1
            reply = await (prompt | self.model).ainvoke(asked, self.call_context.config)
        except Exception as error:
            raise chat_failure(error) from error
        return self._question(reply, question)

    def _condense_input(self, prompt: Prompt, question: str, history: list[BaseMessage]) -> dict[str, Any] | None:
        """The variables of the prompt; None if no message fits into it."""
        newest = self.window.newest(conversation_of(history), partial(_frame, prompt, question))
        return {"question": question, "chat_history": newest} if newest else None

    def _question(self, reply: object, question: str) -> str:
        reply_text = self.text(reply)
        if not isinstance(reply_text, str):
            raise ReaderError(f"the chat model gave a {type(reply_text).__name__}, not text")
        return reply_text.strip() if reply_text.strip() and len(reply_text) <= MAX_QUESTION_CHARS else question


def _frame(prompt: Prompt, question: str) -> list[BaseMessage]:
    """The prompt without a history, to count its tokens; a trace does not show it."""
    variables = {"question": question, "chat_history": list[BaseMessage]()}
    if isinstance(prompt, BasePromptTemplate):
        return prompt.format_prompt(**variables).to_messages()
    return prompt.invoke(variables, {"callbacks": []}).to_messages()


def conversation_of(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """The messages of the user and the model, without tool calls and instructions."""
    return [type(m)(content=str(m.text)) for m in messages if m.type in ("human", "ai") and str(m.text).strip()]
