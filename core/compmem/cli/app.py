"""The command itself: where sub-commands are added, and how errors and exit codes come out.

Exit codes: 0 done, 1 it failed or problems were found, 2 it was called wrongly. Heavy libraries load within the
commands, so that `compmem --help` does not wait for them.
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
"""Columns where the output is no terminal."""


class _Group(TyperGroup):
    """Turns what a command raises into one line and an exit code."""

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
    logging.getLogger("compmem.backbone").setLevel(logging.INFO)  # says what a model takes before it is loaded
    for name in ("pypdf", "httpx", "transformers", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.DEBUG if debug else logging.ERROR)


def main() -> None:
    """Runs the command line of this process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    app()


def out() -> Console:
    """Where results go."""
    return Console(width=None if sys.stdout.isatty() else PIPED_WIDTH, highlight=False)


def err() -> Console:
    """Where progress, warnings and errors go."""
    return Console(stderr=True, highlight=False)


def fail(message: str) -> None:
    """Says on one line of standard error what went wrong."""
    err().print(Text("error: ", style="bold red") + Text(" ".join(printable(message).split())), soft_wrap=True)


def write_json(value: Any) -> None:
    """Writes one JSON value to standard output."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n")


def parse_filter(text: str | None) -> Any:
    """The filter that was given as JSON.

    Raises:
        ValueError: It is no JSON.
    """
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--filter is not JSON ({error}): {text[:200]!r}") from error
