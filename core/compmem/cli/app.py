"""The command itself: sub-commands, errors and exit codes.

Exit codes: 0 success, 1 failure or problems found, 2 wrong usage. Heavy libraries are imported inside the commands, so
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

from compmem.errors import CompMemError
from compmem.trace import printable

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
            fail(str(error) or type(error).__name__)
            raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The command; other modules add theirs with `app.add_typer`."""


@app.callback()
def compmem(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Compress documents into memory once, then answer multi-hop questions from it, with sources."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("compmem.backbone").setLevel(logging.INFO)  # reports the memory a model takes before loading it
    for name in ("pypdf", "httpx", "transformers", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.ERROR)


def main() -> None:
    """Runs the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


def out() -> Console:
    """The console for results."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def err() -> Console:
    """The console for progress, warnings and errors."""
    return Console(stderr=True, highlight=False)


def fail(message: str) -> None:
    """Prints an error as one line on standard error."""
    err().print(Text("error: ", style="bold red") + Text(" ".join(printable(message).split())), soft_wrap=True)


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
