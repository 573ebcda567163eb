"""Runs the HTTP server: uvicorn, in one or several processes over the same folder."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Final

import torch

from compmem.config import RuntimeConfig
from compmem.index import MemoryIndex
from compmem.readers import Endpoint
from compmem.schema import AnswerModels
from compmem.serving.limits import Limits
from compmem.serving.tokens import Tokens

TOKENS: Final = "COMPMEM_TOKENS"
"""Environment variable with the tokens, used if no file is given."""

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
    device: str | None = None
    allow_download: bool = False
    processes: int = 1
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
    if settings.processes < 1:
        raise ValueError(f"processes={settings.processes} must be 1 or more")
    if _tokens(settings) is None and not _is_local(host):
        raise ValueError(f"serving at {host!r} needs tokens: name a file with --tokens, or set {TOKENS}")
    shared: dict[str, Any] = {
        "host": host, "port": port, "server_header": False, "limit_concurrency": 1000, "timeout_graceful_shutdown": 10,
    }  # fmt: skip
    if settings.processes == 1:
        uvicorn.run(application(settings), **shared)
        return
    os.environ[_SETTINGS] = json.dumps(asdict(settings))
    uvicorn.run("compmem.serving.run:of_environment", factory=True, workers=settings.processes, **shared)


def application(settings: Settings) -> Any:
    """The ASGI application for the folder in the settings, with loaded models."""
    from compmem.serving.app import create_app

    limits = Limits(**settings.limits)
    cores = os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // (settings.processes * limits.at_once)))  # cores are divided among questions
    runtime = RuntimeConfig(device=settings.device)
    index = MemoryIndex.open(settings.index, runtime=runtime, allow_download=settings.allow_download)
    if index.config.encoder is not None:
        index.encoder.encode_query(["loads what the first question needs"])
        index.gate  # noqa: B018
    models: AnswerModels = {} if settings.chat is None else {"chat": Endpoint(**settings.chat)}
    return create_app(index, tokens=_tokens(settings), limits=limits, **models)


def of_environment() -> Any:
    """The application of one of several processes."""
    return application(Settings(**json.loads(os.environ[_SETTINGS])))


def _tokens(settings: Settings) -> Tokens | None:
    if settings.tokens is not None:
        return Tokens.read(Path(settings.tokens))
    held = os.environ.get(TOKENS)
    return None if held is None else Tokens.parse(held, TOKENS)


def _is_local(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
