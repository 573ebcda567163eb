"""Options that commands share, and how they give their result."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compmem_research.bench.machine import command, machine

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path | None, typer.Option(help="Also write the result, with its command and machine, to this file.")]


def listed(names: str | None) -> tuple[str, ...]:
    """The names in a list with commas."""
    return tuple(n.strip() for n in (names or "").split(",") if n.strip())


def deliver(result: Mapping[str, Any], tables: Sequence[Table], out: Path | None, as_json: bool) -> None:
    """Print a result as tables or as JSON, and write it to a file if one is given."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"command": command(), "machine": machine(), **result}, indent=1) + "\n")
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        Console().print(*tables, sep="\n")
