"""The command itself: sub-commands, errors and exit codes.

Exit codes: 0 done, 1 something failed or problems were found, 2 called wrongly, 3 `serve` cannot listen on its port
(1 with --ray), 130 interrupted (0 for `serve`). Heavy libraries are imported inside the commands, so that
`compmem --help` is fast.
"""

import io
import json
import logging
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from compmem import __version__
from compmem.cli.answer_text import printable
from compmem.config import RecallConfig
from compmem.errors import CompMemError

PIPED_WIDTH = 120
"""Columns of the output if it is no terminal."""


class _Group(TyperGroup):
    """Turns exceptions of a command into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise
        except (CompMemError, ValueError, ImportError, OSError) as error:
            if ctx.params.get("debug"):
                raise
            print_error(str(error) or type(error).__name__)
            raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The command; other modules add theirs with `@app.command()`."""


def _show_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"compmem {__version__}\n")
        raise typer.Exit


@app.callback()
def compmem(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    """Compress documents into memory once, then answer multi-hop questions from it, with sources."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("compmem.backbone").setLevel(logging.INFO)  # reports the memory a model takes before loading it
    for name in ("httpx", "transformers", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.ERROR)


def main() -> None:
    """Runs the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


def stdout_console() -> Console:
    """The console for results."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def stderr_console() -> Console:
    """The console for progress, warnings and errors."""
    return Console(stderr=True, highlight=False)


def print_error(message: str) -> None:
    """Prints an error as one line on standard error."""
    stderr_console().print(
        Text("error: ", style="bold red") + Text(" ".join(printable(message).split())), soft_wrap=True
    )


def write_json(value: Any) -> None:
    """Writes one JSON value to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def parse_filter(text: str | None) -> Any:
    """The filter given as JSON.

    Raises:
        ValueError: It is not JSON.
    """
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--filter is not JSON ({error}): {text[:200]!r}") from error


def without_none(**options: Any) -> dict[str, Any]:
    """The options that have a value."""
    return {name: value for name, value in options.items() if value is not None}


def chat_arguments(
    config: RecallConfig, model: str | None, base_url: str | None, api_key_env: str | None
) -> dict[str, Any] | None:
    """The arguments of the chat model's `Endpoint`; None without one.

    Raises:
        typer.BadParameter: An option needs a chat model and there is none, or it neither reads nor writes.
    """
    if model is not None:
        if not config.uses_chat:
            raise typer.BadParameter("--model with --reader or --writer: one of them must be chat")
        return {"model": model, "base_url": base_url, "api_key_env": api_key_env}
    if "chat" in (config.reader, config.writer):
        raise typer.BadParameter("--reader or --writer chat needs --model")
    if base_url or api_key_env:
        raise typer.BadParameter("--base-url and --api-key-env need --model")
    if config.cite or config.rounds:
        raise typer.BadParameter(f"{'--cite' if config.cite else '--rounds'} is for a chat model: give --model")
    return None


def chat_model(config: RecallConfig, model: str | None, base_url: str | None, api_key_env: str | None) -> Any:
    """The chat model, or None. Raises what `chat_arguments` and `Endpoint` raise."""
    arguments = chat_arguments(config, model, base_url, api_key_env)
    if arguments is None:
        return None
    from compmem.readers.endpoint import Endpoint  # imports torch, which --help does not need

    return Endpoint(**arguments)
