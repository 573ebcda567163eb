"""`compmem train STAGE --config FILE`: one stage of training, its settings in a TOML file."""

import dataclasses
import json
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

Settings = TypeVar("Settings")

app = typer.Typer(no_args_is_help=True, help="Train what ships trained.")


@app.callback()
def train() -> None:
    """Train what ships trained, one stage at a time."""


@app.command("dense-gate")
def dense_gate(config: Annotated[Path, typer.Option(help="Settings of `GateTraining` in TOML.")]) -> None:
    """The dense gate: a calibrated classifier of question, working memory and block."""
    from compmem.training.dense_gate import GateTraining, train

    sys.stdout.write(json.dumps(train(read_settings(config, GateTraining)), indent=1) + "\n")


def read_settings(path: Path, kind: type[Settings]) -> Settings:
    """A trainer's settings from a TOML file. Paths in it are relative to the file.

    Raises:
        ValueError: The file is no TOML, or has a key that the settings lack.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from error
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise ValueError(f"{path}: unknown setting {unknown[0]!r}; there are {', '.join(sorted(fields))}")
    return kind(**{name: _read(path, fields[name].type, value) for name, value in values.items()})


def _read(file: Path, kind: Any, value: Any) -> Any:
    if "Path" in str(kind):
        return file.parent / Path(value).expanduser()
    return tuple(value) if isinstance(value, list) else value
