"""Input and output types of the reasoner."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import reduce
from typing import Any, NamedTuple, NotRequired, cast

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, MessageLikeRepresentation, convert_to_messages
from langchain_core.runnables.utils import AddableDict
from typing_extensions import TypedDict

import compmem
from compmem import Answer, AnswerToken, Event, Step, Usage
from langchain_compmem.chat import ChatCalls
from langchain_compmem.documents import Filter, from_recalls, whole_id


class ReasonerInput(TypedDict):
    """A question, and the conversation before it."""

    question: str
    chat_history: NotRequired[Sequence[MessageLikeRepresentation]]
    filter: NotRequired[Filter | None]


class ReasonerStep(TypedDict):
    """One step of the loop."""

    number: int
    context: list[Document]
    """The recalled documents that were read, with the gate score in the metadata."""
    working_memory: str
    """The working memory after the step."""
    updated: bool
    exit: bool
    backtracked: bool
    lost: bool
    """It was not read by the deadline."""
    candidates: int
    seconds: float
    request: str
    """What was searched for, if not the whole question: a part of it, or a request of the chat model."""


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


class ParsedInput(NamedTuple):
    """A checked input."""

    question: str
    history: list[BaseMessage]
    filter: Filter | None


def parse(given: object, filter: Filter | None) -> ParsedInput:
    """The checked input; `filter` is used if the input has none.

    Raises:
        ValueError: It is not a question, or its chat history is invalid.
    """
    if isinstance(given, str):
        return ParsedInput(given, [], filter)
    if not isinstance(given, Mapping):
        raise ValueError(f"the input must be a string or a mapping with 'question', not {type(given).__name__}")
    if "question" not in given:
        raise ValueError(f"the input has no 'question', only {', '.join(sorted(map(repr, given))) or 'nothing'}")
    question = given["question"]
    if not isinstance(question, str):
        raise ValueError(f"the input's 'question' must be a string, not {question!r}")
    own = given.get("filter")
    return ParsedInput(question, _messages(given.get("chat_history")), filter if own is None else own)


def _messages(history: object) -> list[BaseMessage]:
    if history is None:
        return []
    if not isinstance(history, Sequence) or isinstance(history, str | bytes):
        raise ValueError(f"chat_history must be a list of messages, not {history!r}")
    try:
        return convert_to_messages(history)
    except (ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise ValueError(f"chat_history must be a list of messages: {error}") from error


def joined(parts: list[Any]) -> Any:
    """The combined input of several parts."""
    try:
        return reduce(operator.add, parts)
    except TypeError:
        return parts[-1] if parts else None


def part_of(event: Event, chat: ChatCalls | None, index: "compmem.BaseIndex") -> ReasonerOutput:
    """The part of the output for an event of the loop."""
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
            )
    return cast("ReasonerOutput", part)


def whole(parts: list[ReasonerOutput]) -> ReasonerOutput:
    """The output from its parts."""
    output: ReasonerOutput = reduce(operator.add, cast("list[Any]", parts))
    return ReasonerOutput(**{**output, "answer": output["answer"].strip()})


def format_tool_output(output: ReasonerOutput) -> str:
    """The answer and its sources as text for an agent."""
    sources = ", ".join(dict.fromkeys(whole_id(document) for document in output["context"]))
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
        usage = replace(usage, model_calls=usage.model_calls + chat.rewritten)
        if (counted := chat.counted) and chat.calls == usage.model_calls:
            usage = replace(usage, prompt_tokens=counted["input_tokens"], completion_tokens=counted["output_tokens"])
    return asdict(usage)
