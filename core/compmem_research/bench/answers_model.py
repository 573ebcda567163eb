"""The chat model of all systems in a comparison: greedy, with counts of calls, tokens and seconds."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from compmem.errors import CompMemError
from compmem.schema import Message

DEFAULT_KEY = "OPENAI_API_KEY"
_TIMEOUT = 1800.0
"""Longest time of a request in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """A reply and its cost as reported by the server."""

    text: str
    prompt_tokens: int
    completion_tokens: int


Complete = Callable[[Sequence[Message]], Completion]
"""A chat model that reports the cost of a reply."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """The cost of the calls for one question."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class MeteredChat:
    """A chat model `messages -> text` that sums the cost of its calls."""

    complete: Complete
    cost: Cost = field(default_factory=Cost)

    def __call__(self, messages: Sequence[Message]) -> str:
        """The whole reply."""
        began = time.perf_counter()
        said = self.complete(messages)
        self.cost = Cost(
            calls=self.cost.calls + 1,
            prompt_tokens=self.cost.prompt_tokens + said.prompt_tokens,
            completion_tokens=self.cost.completion_tokens + said.completion_tokens,
            seconds=self.cost.seconds + time.perf_counter() - began,
        )
        return said.text

    def take_cost(self) -> Cost:
        """The cost of the calls since the last call of this method."""
        cost, self.cost = self.cost, Cost()
        return cost


class Server:
    """A chat model behind an endpoint with the OpenAI API.

    Args:
        model: Name of the model at the endpoint.
        base_url: The endpoint. None: OpenAI's.
        api_key_env: Environment variable with the key. None: `OPENAI_API_KEY` for OpenAI's own endpoint, no key for
            any other.
        max_tokens: Most tokens of a reply.

    Raises:
        ImportError: The client is not installed.
        CompMemError: The environment variable is not set.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        max_tokens: int,
    ) -> None:
        import openai

        name = api_key_env or (DEFAULT_KEY if base_url is None else None)
        key = os.environ.get(name) if name else "none"
        if not key:
            raise CompMemError(f"environment variable {name!r} is not set: set it to the key of the endpoint")
        self._model, self._max_tokens = model, max_tokens
        self._client = openai.OpenAI(base_url=base_url, api_key=key, timeout=_TIMEOUT)

    def __call__(self, messages: Sequence[Message]) -> Completion:
        """The reply at temperature 0."""
        plain: Any = [{"role": m["role"], "content": m["content"]} for m in messages]
        done = self._client.chat.completions.create(
            model=self._model, messages=plain, temperature=0, max_tokens=self._max_tokens
        )
        if done.usage is None:
            raise CompMemError("the endpoint does not report how many tokens a call took")
        return Completion(
            text=done.choices[0].message.content or "",
            prompt_tokens=done.usage.prompt_tokens,
            completion_tokens=done.usage.completion_tokens,
        )
