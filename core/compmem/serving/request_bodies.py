"""Parses requests: untrusted JSON becomes questions and documents, or an error with a status code."""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

from compmem.schema import Document
from compmem.serving.limits import Limits
from compmem.text.follow_up import standalone_question

MAX_HISTORY_MESSAGES = 20
"""Messages of a conversation, the newest ones, in which a follow-up finds its names."""

MAX_FILTER_VALUES = 10_000
"""Maximum number of values of a filter, those of lists counted one by one."""

MAX_JSON_VALUES = 100_000
"""Most JSON values of a body: they take far more memory and time than their text."""
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)

RECALL_FIELDS = frozenset({"question", "filter", "k", "min_score"})
"""Fields of `/recall`."""
ANSWER_FIELDS = frozenset({"question", "filter", "stream"})
"""Fields of `/answer`."""


@dataclass(frozen=True, slots=True)
class QuestionRequest:
    """A question and its options."""

    question: str
    filter: Any = None
    stream: bool = False
    k: int = 8
    min_score: float = 0.0
    include_usage: bool = False
    """A stream ends with a piece that contains the token counts."""


async def read_json(request: Request, limits: Limits) -> Mapping[str, Any]:
    """The JSON object in a body.

    Raises:
        HTTPException: 400 not a JSON object, 408 too slow, 413 too large or too many values, 415 wrong content type.
    """
    # Browsers send JSON to another site only if that site allows it, which this server never does.
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be sent as application/json")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 20 or int(length) > limits.body_bytes:
        raise HTTPException(413, f"the body has more than {limits.body_bytes} bytes")
    try:
        async with asyncio.timeout(limits.body_seconds):
            body = await _read_body(request, limits.body_bytes)
    except TimeoutError as error:
        raise HTTPException(408, f"the body did not arrive within {limits.body_seconds:g} seconds") from error
    if _count_values(body) > MAX_JSON_VALUES and _count_values(_STRING.sub(b"", body)) > MAX_JSON_VALUES:
        raise HTTPException(413, f"the body has more than {MAX_JSON_VALUES:,} JSON values")
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON in UTF-8") from error
    if not isinstance(value, dict):
        raise HTTPException(400, "the body must be a JSON object")
    return value


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > max_bytes:
            raise HTTPException(413, f"the body has more than {max_bytes} bytes")
    return bytes(body)


def _count_values(body: bytes) -> int:
    """How many JSON values there may be besides the first; marks inside strings count too."""
    return sum(map(body.count, (b",", b"[", b"{")))


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def parse_question(body: Mapping[str, Any], limits: Limits, fields: frozenset[str]) -> QuestionRequest:
    """The question of `/recall` or `/answer`, whose fields are given.

    Raises:
        HTTPException: 400 a field is missing or wrong, 413 the question is too long.
    """
    if unknown := set(body) - fields:  # without a misspelt filter, every document would match
        raise HTTPException(400, f"unknown {min(unknown)[:100]!r}: there are {', '.join(sorted(fields))}")
    k = _typed_field(body, "k", int, 8)
    if not 1 <= k <= limits.k:
        raise HTTPException(400, f"'k' must be from 1 to {limits.k}")
    return QuestionRequest(
        question=_question(_typed_field(body, "question", str, ""), limits),
        filter=_filter(body),
        stream=_typed_field(body, "stream", bool, False),
        k=k,
        min_score=_typed_field(body, "min_score", int | float, 0.0),
    )


def _filter(body: Mapping[str, Any]) -> Any:
    """The filter of a request; it is compiled in the event loop, so its size is limited."""
    given = _typed_field(body, "filter", dict | list, None)
    count, parts = 0, [given]
    while parts:
        part = parts.pop()
        if isinstance(part, dict | list):
            count += len(part)
            if count > MAX_FILTER_VALUES:
                raise HTTPException(413, f"a filter may have {MAX_FILTER_VALUES:,} values")
            parts += part.values() if isinstance(part, dict) else part
    return given


def parse_chat(body: Mapping[str, Any], model: str, limits: Limits) -> QuestionRequest:
    """The question of a chat completion: the text of the last user message, with the names that it refers to.

    Raises:
        HTTPException: 400 a field is missing or wrong, 404 another model, 413 the question is too long.
    """
    named = _typed_field(body, "model", str, "")
    if named != model:
        raise HTTPException(404, f"the model {named[:100]!r} does not exist; there is {model!r}")
    if _typed_field(body, "n", int, 1) != 1:
        raise HTTPException(400, "'n' must be 1")
    options = _typed_field(body, "stream_options", dict, {})
    return QuestionRequest(
        question=_last_question(_typed_field(body, "messages", list, []), limits),
        filter=_filter(body),
        stream=_typed_field(body, "stream", bool, False),
        include_usage=_typed_field(options, "include_usage", bool, False),
    )


def documents(body: Mapping[str, Any], limits: Limits) -> list[Document]:
    """The documents to add.

    Raises:
        HTTPException: 400 a field is missing or wrong, 413 there are too many.
    """
    given = _typed_field(body, "documents", list, [])
    if not given:
        raise HTTPException(400, "'documents' is missing or empty")
    if len(given) > limits.documents:
        raise HTTPException(413, f"{len(given)} documents are more than {limits.documents} in one request")
    return [_document(fields, number) for number, fields in enumerate(given)]


def _document(fields: Any, number: int) -> Document:
    try:
        return Document.from_json(fields)
    except ValueError as error:
        raise HTTPException(400, f"documents[{number}]: {error}") from error


def _last_question(messages: list[Any], limits: Limits) -> str:
    """The text of the last user message; a follow-up with the names that it refers to in the messages before."""
    if not all(isinstance(message, dict) for message in messages):
        raise HTTPException(400, "each of 'messages' must be an object")
    places = [place for place, message in enumerate(messages) if message.get("role") == "user"]
    if not places:
        raise HTTPException(400, "'messages' has no message of the user")
    texts, parts = _texts(messages[places[-1]])
    if len(texts) < parts:
        raise HTTPException(400, "the content of a message must be text")
    question = _question("\n".join(texts), limits)
    turns = [message for message in messages[: places[-1]] if message.get("role") in ("user", "assistant")]
    history = [{"role": turn["role"], "content": "\n".join(_texts(turn)[0])} for turn in turns[-MAX_HISTORY_MESSAGES:]]
    return standalone_question(history, question)


def _texts(message: Mapping[str, Any]) -> tuple[list[str], int]:
    """The texts of a message, and how many parts it has."""
    content = message.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    values = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    return [text for text in values if isinstance(text, str)], len(parts)


def _question(text: str, limits: Limits) -> str:
    if not text.strip():
        raise HTTPException(400, "the question is missing or empty")
    if len(text) > limits.question_characters:
        raise HTTPException(413, f"the question has more than {limits.question_characters} characters")
    return text


def _typed_field(fields: Mapping[str, Any], name: str, kind: Any, default: Any) -> Any:
    """The value of a field; null counts as missing."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise HTTPException(400, f"{name!r} has the wrong type")
    return value
