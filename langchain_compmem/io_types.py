"""Input and output types of the reasoner."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from itertools import takewhile
from typing import Any, NamedTuple, NotRequired, cast

from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    MessageLikeRepresentation,
    convert_to_messages,
    message_chunk_to_message,
)
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables.utils import AddableDict
from typing_extensions import TypedDict

import compmem
from compmem import Answer, AnswerToken, Event, Step, Usage
from langchain_compmem.chat import ChatCalls
from langchain_compmem.documents import CITED_KEY, Filter, from_recalls, whole_id


class ReasonerInput(TypedDict):
    """A question, and the conversation before it."""

    question: str
    chat_history: NotRequired[Sequence[MessageLikeRepresentation]]
    filter: NotRequired[Filter | None]
    """Holds together with the reasoner's own filter."""


class MessagesInput(TypedDict):
    """A conversation, such as the state of a graph: the last message of the user is the question."""

    messages: Sequence[MessageLikeRepresentation]
    filter: NotRequired[Filter | None]
    """Holds together with the reasoner's own filter."""


Input = str | ReasonerInput | MessagesInput | Sequence[MessageLikeRepresentation]
"""What a reasoner takes: a question, or a conversation whose last message of the user is the question."""


class ReasonerStep(TypedDict):
    """One step of the loop."""

    number: int
    context: list[Document]
    """The recalled documents that were read, with the gate score in the metadata."""
    working_memory: str
    """The working memory after the step; each part of a question has its own."""
    updated: bool
    exit: bool
    backtracked: bool
    lost: bool
    """It was not read by the deadline."""
    candidates: int
    seconds: float
    request: str
    """What was searched for, if not the whole question: one of the questions that it consists of, or a request of the
    chat model. A question that asks several things is searched part by part, and the steps are numbered through."""


class ReasonerOutput(TypedDict):
    """The answer, its sources, and the steps that led to it."""

    answer: str
    found: bool
    """False if nothing in the index is relevant to the question."""
    context: list[Document]
    """The documents that the answer is based on, in reading order, with the gate score in the metadata, and
    `compmem_cited` if the answer cites them by their number, as in `[1]`."""
    working_memory: str
    """The notes of the loop; empty if nothing is relevant to the question."""
    steps: list[ReasonerStep]
    usage: dict[str, float]
    stop_reason: str
    """Why the loop ended: see `compmem.Answer`."""
    messages: NotRequired[list[AIMessage]]
    """The answer as a message; only if the input had messages."""


_NO_FILTERS = frozenset("Filter filters Filters metadata_filter metadata_filters where".split())
"""Names that a filter has elsewhere. Other keys of an input are not used here, and are those of a chain or graph."""


class ParsedInput(NamedTuple):
    """A checked input."""

    question: str
    history: list[BaseMessage]
    filter: Filter | None = None
    as_message: bool = False
    """The input is a conversation, so the output has the answer as a message."""

    @property
    def system(self) -> str:
        """The system messages at the beginning of the conversation."""
        return "\n\n".join(str(m.text) for m in takewhile(lambda m: m.type == "system", self.history))


def parse(given: object) -> ParsedInput:
    """The checked input. In a mapping with `question`, `messages` are not used.

    Raises:
        ValueError: It has no question, its messages are invalid, or a filter has another name than `filter`.
    """
    if isinstance(given, str):
        return ParsedInput(given, [])
    if isinstance(given, PromptValue):
        given = given.to_messages()
    if isinstance(given, list | tuple):
        return _conversation(given, None)
    if not isinstance(given, Mapping):
        raise ValueError(f"the input must be a string or a mapping with 'question', not {type(given).__name__}")
    if wrong := [key for key in given if key in _NO_FILTERS and isinstance(given[key], Mapping | list | tuple)]:
        raise ValueError(f"the input has {wrong[0]!r}: the filter of a question is named 'filter'")
    if "question" not in given and "messages" in given:
        return _conversation(given["messages"], given.get("filter"))
    if "question" not in given:
        raise ValueError(f"the input has no 'question', only {', '.join(sorted(map(repr, given))) or 'nothing'}")
    question, history = given["question"], given.get("chat_history")
    if not isinstance(question, str):
        raise ValueError(f"the input's 'question' must be a string, not {type(question).__name__}")
    return ParsedInput(
        question, [] if history is None else _messages("chat_history", history), filter=given.get("filter")
    )


def _conversation(given: object, filter: Filter | None) -> ParsedInput:
    """The last message of the user as the question, and what is before it."""
    messages = _messages("messages", given)
    place = max((n for n, message in enumerate(messages) if message.type == "human"), default=None)
    if place is None:
        raise ValueError("the messages have no question: none of them is from the user")
    return ParsedInput(str(messages[place].text), messages[:place], filter, as_message=True)


def _messages(name: str, given: object) -> list[BaseMessage]:
    """The messages; what was added up from the chunks of a stream becomes a message."""
    if not isinstance(given, Sequence) or isinstance(given, str | bytes):
        raise ValueError(f"{name} must be a list of messages, not {type(given).__name__}")
    try:
        return [message_chunk_to_message(one) for one in convert_to_messages(given)]
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ValueError(f"{name} must be a list of messages: {error}") from error


def joined(parts: list[Any]) -> Any:
    """The combined input of several parts."""
    try:
        return reduce(operator.add, parts)
    except TypeError:
        return parts[-1] if parts else None


def output_part(
    event: Event, chat: ChatCalls | None, index: "compmem.BaseIndex", *, replies: bool = False
) -> ReasonerOutput:
    """The part of the output for an event of the loop; with `as_message`, the last one has the answer as a message."""
    match event:
        case Step():
            part = AddableDict(steps=[_step(event, index)])
        case AnswerToken():
            part = AddableDict(answer=event.text)
        case Answer():
            part = AddableDict(
                answer="",
                found=event.found,
                context=from_recalls(index, event.sources),
                working_memory=event.working_memory,
                steps=[],
                usage=_usage(event.usage, chat),
                stop_reason=event.stop_reason,
                **({"messages": [AIMessage(event.text, id=chat and chat.answer_id)]} if replies else {}),
            )
    return cast("ReasonerOutput", part)


def merge_parts(parts: list[ReasonerOutput]) -> ReasonerOutput:
    """The output from its parts."""
    output: ReasonerOutput = reduce(operator.add, cast("list[Any]", parts))
    return ReasonerOutput(**{**output, "answer": output["answer"].strip()})


def format_tool_output(output: ReasonerOutput) -> str:
    """The answer and its sources as text for an agent, numbered as the answer cites them; all if it cites none."""
    numbered = list(enumerate(output["context"], 1))
    cited = [(n, document) for n, document in numbered if document.metadata.get(CITED_KEY)]
    sources = ", ".join(f"[{n}] {whole_id(document)}" for n, document in cited or numbered)
    return f"{output['answer']}\n\nSources: {sources}" if sources else output["answer"]


def _step(step: Step, index: "compmem.BaseIndex") -> ReasonerStep:
    return ReasonerStep(
        number=step.number,
        context=from_recalls(index, step.recalls),
        working_memory=step.working_memory,
        updated=step.updated,
        exit=step.exit,
        backtracked=step.backtracked,
        lost=step.lost,
        candidates=step.candidates,
        seconds=step.seconds,
        request=step.request,
    )


def _usage(usage: Usage, chat: ChatCalls | None) -> dict[str, float]:
    """The cost; tokens are counted by the chat model if it does so for every call, else estimated."""
    if chat is not None:
        usage = replace(usage, model_calls=usage.model_calls + chat.condense_calls)
        if (counted := chat.counted) and chat.calls == usage.model_calls:
            usage = replace(usage, prompt_tokens=counted["input_tokens"], completion_tokens=counted["output_tokens"])
    return asdict(usage)
