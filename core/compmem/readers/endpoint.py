"""A chat model behind any endpoint with the OpenAI API, through the official client."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from tokenizers import Tokenizer

from compmem.errors import CompMemError
from compmem.schema import Message

if TYPE_CHECKING:
    import httpx

DEFAULT_KEY = "OPENAI_API_KEY"

MAX_EVENT_BYTES: Final = 8 * 2**20
"""Maximum number of bytes between two line ends of a reply; the client keeps a line until its end."""


class Endpoint:
    """A chat model: `messages -> pieces of text`, streamed.

    Args:
        model: Name of the model at the endpoint.
        base_url: The endpoint. None: that of the environment variable `OPENAI_BASE_URL`, else OpenAI's.
        api_key_env: Environment variable with the key. None: `OPENAI_API_KEY` where `base_url` is None (it need not be
            set with `OPENAI_BASE_URL`), else no key, so that OpenAI's is not sent to another server.
        timeout: Longest time of an attempt in seconds; one that fails is made at most twice again.
        tokenizer: The model's `tokenizer.json`, which counts the tokens of prompts. None: they are estimated.

    Raises:
        ImportError: The client is not installed.
        ValueError: The endpoint is no http(s) address.
        CompMemError: The environment variable is not set, or the tokenizer cannot be read.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        api_key_env: str | None = None,
        timeout: float = 120.0,
        tokenizer: str | Path | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError('the chat reader needs the openai client: pip install "compmem[chat]"') from error

        url = base_url if base_url is not None else os.environ.get("OPENAI_BASE_URL") or None
        if url is not None and not _is_address(url):
            raise ValueError(f"the endpoint {url!r} must begin with http:// or https:// and name a host")
        name = api_key_env or (DEFAULT_KEY if base_url is None else None)
        key = os.environ.get(name) if name else None
        if not key and (api_key_env or url is None):
            raise CompMemError(f"environment variable {name!r} is not set: set it to the key of the endpoint")
        self._model = model
        self.count_tokens = None if tokenizer is None else _counter(tokenizer)
        """Counts the tokens of a text; None if the tokenizer is not given."""
        http = openai.DefaultHttpxClient(event_hooks={"response": [_limit_lines]}, timeout=timeout)
        self._client = openai.OpenAI(base_url=base_url, api_key=key or "none", timeout=timeout, http_client=http)

    def __call__(self, messages: Sequence[Message]) -> Iterator[str]:
        """The reply in pieces, empty ones for events without text, so that a reply without any can be ended.

        Raises:
            ConnectionError: No server answers at the endpoint.
        """
        import openai

        plain: Any = [{"role": m["role"], "content": m["content"]} for m in messages]
        try:
            stream = self._client.chat.completions.create(model=self._model, messages=plain, stream=True)
        except openai.APITimeoutError:
            raise
        except openai.APIConnectionError as error:
            raise ConnectionError(f"no server answers at {self._client.base_url.netloc.decode()}") from error
        with stream:
            for part in stream:
                yield (part.choices[0].delta.content or "") if part.choices else ""


def _limit_lines(response: "httpx.Response") -> None:
    """Ends a response with a line that is too long."""
    read = response.iter_bytes

    def iter_bytes(chunk_size: int | None = None) -> Iterator[bytes]:
        length = 0
        for data in read(chunk_size):
            end = data.rfind(b"\n")
            length = length + len(data) if end < 0 else len(data) - end - 1
            if length > MAX_EVENT_BYTES:
                response.close()
                raise ConnectionError(f"the endpoint sent a line of more than {MAX_EVENT_BYTES:,} bytes")
            yield data

    response.iter_bytes = iter_bytes  # type: ignore[method-assign]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of the port, or of an IPv6 address
        return False


def _counter(file: str | Path) -> Callable[[str], int]:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises no specific exception
        raise CompMemError(f"{str(file)!r} is not a readable tokenizer.json: {error}") from error
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)
