"""The OpenAI format of chat completions: an answer as one object, or as pieces of a stream."""

import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import uuid4

from compmem.as_json import source_json
from compmem.schema import Answer, AnswerToken, Event


class Completion:
    """One reply with one id. Values that the OpenAI format does not have are under `compmem`."""

    def __init__(self, model: str) -> None:
        self._header = {"id": f"chatcmpl-{uuid4().hex}", "created": int(time.time()), "model": model}

    def response(self, answer: Answer) -> dict[str, Any]:
        """The whole reply."""
        choice = {"index": 0, "message": {"role": "assistant", "content": answer.text}, "finish_reason": "stop"}
        return {
            **self._header, "object": "chat.completion", "choices": [choice], "usage": _usage(answer),
            "compmem": extras(answer),
        }  # fmt: skip

    async def stream_chunks(self, events: AsyncIterator[Event], *, include_usage: bool) -> AsyncIterator[str]:
        """The reply in pieces, each the JSON of one event, with `[DONE]` at the end."""
        yield self._piece({"role": "assistant", "content": ""})
        async for event in events:
            if isinstance(event, AnswerToken):
                yield self._piece({"content": event.text})
            elif isinstance(event, Answer):
                yield self._piece({}, finish_reason="stop", more={"compmem": extras(event)})
                if include_usage:
                    yield json.dumps({**self._chunk, "choices": [], "usage": _usage(event)})
        yield "[DONE]"

    @property
    def _chunk(self) -> dict[str, Any]:
        return {**self._header, "object": "chat.completion.chunk"}

    def _piece(
        self, delta: Mapping[str, str], *, finish_reason: str | None = None, more: Mapping[str, Any] | None = None
    ) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        return json.dumps({**self._chunk, "choices": [choice], **(more or {})})


def models(name: str, created: int) -> dict[str, Any]:
    """The list of the only model."""
    return {"object": "list", "data": [{"id": name, "object": "model", "created": created, "owned_by": "compmem"}]}


def extras(answer: Answer) -> dict[str, Any]:
    """The additional values of a chat completion, besides the text."""
    sources = [source_json(source) for source in answer.sources]
    return {"found": answer.found, "stop_reason": answer.stop_reason, "sources": sources}


def _usage(answer: Answer) -> dict[str, int]:
    read, written = answer.usage.prompt_tokens, answer.usage.completion_tokens
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
