"""Runs the HTTP server with uvicorn, in one or several processes over the same folder."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import torch
from threadpoolctl import threadpool_limits

from compmem.config import RecallConfig, RuntimeConfig
from compmem.index import MemoryIndex
from compmem.readers import Endpoint
from compmem.schema import AnswerModels
from compmem.serving.limits import Limits
from compmem.serving.tokens import Tokens

TOKENS_VARIABLE: Final = "COMPMEM_TOKENS"
"""Environment variable with the tokens, used if no file is given."""

MAX_CONNECTIONS: Final = 1000
"""Maximum number of requests that a process or replica holds, those that wait among them."""

SHUTDOWN_SECONDS: Final = 10
"""How long a server that was told to stop works on the requests that it has."""

_SETTINGS: Final = "COMPMEM_SERVE_SETTINGS"


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Settings of a server process."""

    index: str
    """Folder of the index."""
    tokens: str | None = None
    """File with the tokens; see `Tokens.parse`."""
    chat: Mapping[str, Any] | None = None
    """Arguments of the chat model's `Endpoint`."""
    cite: bool = False
    """Have the chat model cite its sources, as in `[1]`."""
    device: str | None = None
    backbone_base: str | None = None
    allow_download: bool = False
    processes: int = 1
    """Processes or replicas, which share the cores of a machine."""
    read_only: bool = False
    """Refuse to add and delete documents."""
    limits: Mapping[str, Any] = field(default_factory=dict)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serves until the process is stopped.

    Raises:
        ValueError: Other machines could reach it without a token, or a setting is wrong.
        ImportError: The extra `serve` is not installed.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError('the server needs packages that are not installed: pip install "compmem[serve]"') from error
    tokens = check_access(settings, host)
    server_options: dict[str, Any] = {
        "host": host, "port": port, "server_header": False, "limit_concurrency": MAX_CONNECTIONS,
        "timeout_graceful_shutdown": SHUTDOWN_SECONDS, "http": "h11",  # which limits the size of URL and headers
    }  # fmt: skip
    if settings.processes == 1:
        uvicorn.run(make_app(settings, open_index(settings), tokens), **server_options)
        return
    os.environ[_SETTINGS] = json.dumps(asdict(settings))
    uvicorn.run("compmem.serving.run:app_from_environment", factory=True, workers=settings.processes, **server_options)


def open_index(settings: Settings, open_function: Callable[..., MemoryIndex] | None = None) -> MemoryIndex:
    """The index, with loaded models; the cores are divided among the questions at work.

    Args:
        settings: The server.
        open_function: Opens the index with `runtime` and `allow_download`. None: the one in the settings' folder.
    """
    cores, at_once = os.cpu_count() or 1, Limits(**settings.limits).at_once
    threads = max(1, cores // (settings.processes * at_once))
    torch.set_num_threads(threads)
    threadpool_limits(threads, user_api="blas")
    runtime = RuntimeConfig(device=settings.device, backbone_base=settings.backbone_base)
    open_function = open_function or partial(MemoryIndex.open, settings.index)
    index = open_function(runtime=runtime, allow_download=settings.allow_download)
    if index.config.encoder is not None:
        index.encoder.encode_query(["loads what the first question needs"])
        index.gate  # noqa: B018
    return index


def make_app(settings: Settings, index: MemoryIndex, tokens: Tokens | None) -> Any:
    """The ASGI application over an open index."""
    from compmem.serving.app import create_app

    models: AnswerModels = {} if settings.chat is None else {"chat": Endpoint(**settings.chat)}
    config, limits = RecallConfig(cite=settings.cite), Limits(**settings.limits)
    return create_app(index, config=config, tokens=tokens, limits=limits, read_only=settings.read_only, **models)


def app_from_environment() -> Any:
    """The application of one of several processes."""
    settings = Settings(**json.loads(os.environ[_SETTINGS]))
    return make_app(settings, open_index(settings), _tokens(settings))


def check_access(settings: Settings, host: str) -> Tokens | None:
    """Who may use the server; None for everyone on this machine.

    Raises:
        ValueError: Other machines could reach it without a token, or a token or the number of processes is invalid.
        OSError: The file of the tokens cannot be read.
    """
    if settings.processes < 1:
        raise ValueError(f"{settings.processes} processes: there must be 1 or more")
    tokens = _tokens(settings)
    if tokens is None and not _is_local(host):
        raise ValueError(f"serving at {host!r} needs tokens: name a file with --tokens, or set {TOKENS_VARIABLE}")
    return tokens


def _tokens(settings: Settings) -> Tokens | None:
    if settings.tokens is not None:
        return Tokens.read(Path(settings.tokens))
    held = os.environ.get(TOKENS_VARIABLE)
    return None if held is None else Tokens.parse(held, TOKENS_VARIABLE)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
