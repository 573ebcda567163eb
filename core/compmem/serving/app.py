"""An index over HTTP: the OpenAI chat completions API, recall, answers and documents, protected by tokens."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar, Unpack

try:
    from sse_starlette import EventSourceResponse
    from starlette.applications import Starlette
    from starlette.convertors import PathConvertor, register_url_convertor
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route
    from starlette.types import Receive, Scope, Send
except ImportError as error:
    raise ImportError('the server needs packages that are not installed: pip install "compmem[serve]"') from error

from compmem.as_json import answer_json, document_json, recall_json, step_json
from compmem.config import RecallConfig
from compmem.errors import CompMemError, ReaderError, StoreError, StoreLockedError
from compmem.index import MemoryIndex
from compmem.schema import Answer, AnswerModels, AnswerToken, Event
from compmem.serving import chat, request_bodies
from compmem.serving.limits import BusyError, Limits
from compmem.serving.request_bodies import (
    ANSWER_FIELDS,
    RECALL_FIELDS,
    QuestionRequest,
    parse_chat,
    parse_question,
    read_json,
)
from compmem.serving.tenancy import Tenant, TenantIndex
from compmem.serving.tokens import Tokens
from compmem.threads import in_thread

logger = logging.getLogger(__name__)

T = TypeVar("T")


class _TextConvertor(PathConvertor):
    """The rest of a path, also with line feeds: a document's id."""

    regex = "(?s:.*)"


register_url_convertor("text", _TextConvertor())

LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
"""Host names accepted by a server without tokens, so that no web page can reach it under another name."""


def create_app(
    index: MemoryIndex,
    *,
    tokens: Tokens | None = None,
    config: RecallConfig | None = None,
    limits: Limits | None = None,
    model: str = "compmem",
    read_only: bool = False,
    **models: Unpack[AnswerModels],
) -> Starlette:
    """The ASGI application.

    Args:
        index: The index to query. The caller closes it.
        tokens: Who may use the server. None: every caller on this machine.
        config: How questions are answered.
        limits: Limits of a request.
        model: The name of the only model.
        read_only: No document may be added or deleted, whatever a token allows.
        **models: Models that read and write answers; see `AnswerModels`.
    """
    server = _Server(index, tokens, config or RecallConfig(), limits or Limits(), model, read_only, models)
    routes = [
        Route("/health", server.health, methods=["GET"]),
        Route("/v1/models", server.route(server.models), methods=["GET"]),
        Route("/v1/chat/completions", server.route(server.completions), methods=["POST"]),
        Route("/recall", server.route(server.recall), methods=["POST"]),
        Route("/answer", server.route(server.answer), methods=["POST"]),
        Route("/documents", server.route(server.documents), methods=["GET"]),
        Route("/documents", server.route(server.add), methods=["POST"]),
        Route("/documents/{id:text}", server.route(server.delete), methods=["DELETE"]),
    ]
    local = [Middleware(TrustedHostMiddleware, allowed_hosts=list(LOCAL_HOSTS))] if tokens is None else []
    handlers: dict[Any, Any] = {HTTPException: _http_error_response, Exception: _server_error_response}
    return Starlette(routes=routes, middleware=local, exception_handlers=handlers)


class _Server:
    """The routes; each handles a request of one tenant."""

    def __init__(
        self,
        index: MemoryIndex,
        tokens: Tokens | None,
        config: RecallConfig,
        limits: Limits,
        model: str,
        read_only: bool,
        models: AnswerModels,
    ) -> None:
        self._models = models
        self._read_only = read_only
        self._index = index
        self._tokens = tokens
        self._config = limits.with_time_limit(config)
        self._limits = limits
        self._model = model
        self._started = int(time.time())
        self._question_limiter = limits.limiter(limits.at_once)
        self._write_limiter = limits.limiter(1)

    def route(
        self, handle: Callable[[Request, TenantIndex], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler that checks the token and turns exceptions into status codes."""

        async def handled(request: Request) -> Response:
            tenant = Tenant() if self._tokens is None else self._tokens.holder(request.headers.get("authorization"))
            if tenant is None:
                raise HTTPException(401, "a valid bearer token is needed", {"WWW-Authenticate": "Bearer"})
            try:
                return await handle(request, TenantIndex(self._index, tenant))
            except (BusyError, StoreLockedError) as error:
                raise HTTPException(503, "the server is busy: try again later", {"Retry-After": "1"}) from error
            except TimeoutError as error:
                raise HTTPException(504, "the question took too long") from error
            except ReaderError as error:
                logger.warning("the chat model failed: %s", error)
                raise HTTPException(502, "the chat model failed") from error
            except StoreError as error:
                logger.exception("the index cannot be read")
                raise HTTPException(503, "the index cannot be read; see the server's log") from error
            except CompMemError:
                raise
            except ValueError as error:
                raise HTTPException(400, str(error)) from error
            except ClientDisconnect:
                return Response(status_code=499)  # the client has disconnected

        return handled

    async def health(self, request: Request) -> Response:
        """Whether the index can be read."""
        try:
            await asyncio.to_thread(self._index.__len__)  # the threads of questions may all be at work
        except CompMemError:
            logger.exception("the index cannot be read")
            return JSONResponse({"status": "failing"}, 503)
        return JSONResponse({"status": "ok"})

    async def models(self, request: Request, index: TenantIndex) -> Response:
        """The list of models."""
        return JSONResponse(chat.models(self._model, self._started))

    async def completions(self, request: Request, index: TenantIndex) -> Response:
        """A chat completion."""
        query = parse_chat(await read_json(request, self._limits), self._model, self._limits)
        reply = chat.Completion(self._model)
        events = self._events(query, index)
        if query.stream:
            return await self._stream(request, events, partial(reply.stream_chunks, include_usage=query.include_usage))
        return JSONResponse(reply.response(await _while_connected(request, _answer_of(events))))

    async def answer(self, request: Request, index: TenantIndex) -> Response:
        """An answer with its steps, sources and usage."""
        query = parse_question(await read_json(request, self._limits), self._limits, ANSWER_FIELDS)
        events = self._events(query, index)
        if query.stream:
            return await self._stream(request, events, _sse_events)
        return JSONResponse(answer_json(await _while_connected(request, _answer_of(events))))

    async def recall(self, request: Request, index: TenantIndex) -> Response:
        """The blocks that a question needs."""
        query = parse_question(await read_json(request, self._limits), self._limits, RECALL_FIELDS)

        async def recall() -> list[dict[str, Any]]:
            async with self._question_limiter.slot(), asyncio.timeout(2 * self._limits.answer_seconds):
                recalls = await index.arecall(
                    query.question, query.k, min_score=query.min_score, filter=query.filter, config=self._config
                )
            return list(map(recall_json, recalls))

        return JSONResponse({"recalls": await _while_connected(request, recall())})

    async def documents(self, request: Request, index: TenantIndex) -> Response:
        """The documents without their texts, one page at a time."""
        if unknown := sorted(set(request.query_params) - {"offset"}):
            raise HTTPException(400, f"unknown {unknown[0][:100]!r}: there is offset")
        offset = request.query_params.get("offset", "0")
        if not offset.isdecimal() or len(offset) > 12:
            raise HTTPException(400, "'offset' must be a whole number")
        async with self._question_limiter.slot():
            page, total = await in_thread(index.documents, int(offset), self._limits.documents)
        return JSONResponse({"documents": list(map(document_json, page)), "total": total})

    async def add(self, request: Request, index: TenantIndex) -> Response:
        """Adds documents; unchanged ones are not compressed again."""
        self._check_may_write(index.tenant)
        given = request_bodies.documents(await read_json(request, self._limits), self._limits)
        characters = sum(len(document.text) for document in given)
        # Once begun, adding is finished even if the client disconnects.
        async with self._write_limiter.slot(characters):
            added = await in_thread(index.add, given)
        return JSONResponse({"added": added, "unchanged": len(given) - added, "ids": [d.id for d in given]})

    async def delete(self, request: Request, index: TenantIndex) -> Response:
        """Deletes a document."""
        self._check_may_write(index.tenant)
        async with self._write_limiter.slot():
            deleted = await in_thread(index.delete, request.path_params["id"])
        if not deleted:  # the same for an unknown id and for another tenant's
            raise HTTPException(404, "there is no document of this id")
        return JSONResponse({"deleted": 1})

    def _check_may_write(self, tenant: Tenant) -> None:
        if self._read_only:
            raise HTTPException(403, "this server does not add or delete documents")
        if not tenant.write:
            raise HTTPException(403, "this token may not add or delete documents")

    async def _events(self, query: QuestionRequest, index: TenantIndex) -> AsyncGenerator[Event, None]:
        """The events that answer a question, once it is its turn; closing the generator stops the work."""
        async with self._question_limiter.slot():
            deadline = time.monotonic() + 2 * self._limits.answer_seconds
            made = index.astream(query.question, self._config, filter=query.filter, **self._models)
            async with aclosing(made):
                while (event := await _next(made, deadline)) is not None:
                    yield event

    async def _stream(
        self,
        request: Request,
        events: AsyncGenerator[Event, None],
        as_pieces: Callable[[AsyncIterator[Event]], AsyncIterator[Any]],
    ) -> Response:
        """A stream that starts with the first event, so that an earlier failure has its own status code."""
        try:
            first = await _while_connected(request, anext(events))
        except BaseException:
            await events.aclose()
            raise
        pieces = _with_error_piece(as_pieces(_prepend(first, events)))
        return _Stream(events, pieces, send_timeout=self._limits.send_seconds)


class _Stream(EventSourceResponse):
    """Server-sent events; the event generator is closed when they end, or the client disconnects or is too slow."""

    def __init__(self, events: AsyncGenerator[Event, None], pieces: AsyncIterator[Any], *, send_timeout: float) -> None:
        super().__init__(pieces, send_timeout=send_timeout)
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._events.aclose()


async def _prepend(first: Event, others: AsyncIterator[Event]) -> AsyncIterator[Event]:
    yield first
    async for event in others:
        yield event


async def _with_error_piece(pieces: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The pieces; a failure becomes a last piece in the OpenAI error format."""
    try:
        async for piece in pieces:
            yield piece
    except (CompMemError, TimeoutError) as error:
        logger.warning("an answer was cut off: %s", str(error) or type(error).__name__)
        yield json.dumps(_error("the answer was cut off", 502))


async def _sse_events(events: AsyncIterator[Event]) -> AsyncIterator[dict[str, str]]:
    """The events of `/answer`: `step`, `token` and `answer`."""
    async for event in events:
        if isinstance(event, AnswerToken):
            yield _sse_event("token", {"text": event.text})
        elif isinstance(event, Answer):
            yield _sse_event("answer", answer_json(event))
        else:
            yield _sse_event("step", step_json(event))


def _sse_event(name: str, value: dict[str, Any]) -> dict[str, str]:
    return {"event": name, "data": json.dumps(value, ensure_ascii=False)}


async def _next(events: AsyncGenerator[Event, None], deadline: float) -> Event | None:
    # Not `wait_for`: in Python 3.11 it loses a cancellation that comes in the same turn as the event.
    async with asyncio.timeout(deadline - time.monotonic()):
        return await anext(events, None)


async def _answer_of(events: AsyncGenerator[Event, None]) -> Answer:
    async with aclosing(events):
        *_, last = [event async for event in events]
    assert isinstance(last, Answer)
    return last


async def _while_connected(request: Request, work: Awaitable[T]) -> T:
    """The result of the work, which is cancelled when the client disconnects.

    Raises:
        ClientDisconnect: The client has disconnected.
    """
    task = asyncio.ensure_future(work)
    disconnected = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, disconnected):
            each.cancel()
        await asyncio.gather(task, disconnected, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _http_error_response(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse(_error(error.detail, error.status_code), error.status_code, headers=error.headers)


def _server_error_response(request: Request, error: Exception) -> Response:
    return _http_error_response(request, HTTPException(500, "the server failed; see its log"))


def _error(message: str, code: int) -> dict[str, Any]:
    kind = "invalid_request_error" if code < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "code": code}}
