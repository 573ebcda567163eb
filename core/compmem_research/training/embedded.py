"""`compmem train embedded`: a whole recipe phase by phase, from random weights or a pretrained model to export.

A phase is one stage with its own settings file, as run by `compmem train STAGE --config FILE`. Phases may run on
different machines: each starts from the weights of the previous one, stored in a few small files, and from packed data
(`compmem train text`). It needs only torch, transformers, tokenizers, safetensors, numpy and accelerate:

    PYTHONPATH=core python -m compmem_research.training.embedded --config embedded.toml --out work --phase 2
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from compmem.naming import absolute_path
from compmem_research.training.engine.log import LOG
from compmem_research.training.engine.packing import pack, unpack
from compmem_research.training.engine.settings import read_settings
from compmem_research.training.engine.trainer import BACKBONE
from compmem_research.training.stages import load_stage

CARRIED, LOGS, REPORT = "carried", "logs.json", "report.json"
"""Files of a phase for the next machine: a folder of weights, the logs so far and its report."""
SETTINGS = "compmem.json"
"""The settings in a backbone's folder, which name the stock model if only what was added to it is there."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """One stage with its settings."""

    stage: str
    config: Path
    """Settings file; paths in it are relative to the folder of the whole run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """The phases, and the files that are moved between machines."""

    phases: tuple[Phase, ...]
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the moved weights."""
    base: str | None = None
    """Pretrained model that the first phase starts from, and alone downloads: its name, folder or `.gguf` file. None:
    each phase names its own start."""

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases=[] leaves nothing to do")


def run_all(
    config: Path, out: Path, phase: int | None = None, *, minutes: float | None = None, base: str | None = None
) -> list[dict[str, Any]]:
    """Run all phases, or the one with this number (from 1 on); returns their metrics.

    A phase uses the moved files if its start is not in the folder; they must be of that start. None trains longer than
    the given minutes, earlier calls included; measuring, writing and the gate's rollouts take additional time. `base`
    replaces the recipe's.

    Raises:
        ValueError: There is no such phase, or settings are wrong.
        CheckpointError: A checkpoint cannot be read or written, or the moved files are not of a phase's start.
    """
    settings = read_settings(config, Embedded)
    settings = settings if base is None else dataclasses.replace(settings, base=absolute_path(base))
    if phase is not None and not 1 <= phase <= len(settings.phases):
        raise ValueError(f"phase={phase}: there are 1 to {len(settings.phases)}")
    chosen = settings.phases if phase is None else settings.phases[phase - 1 : phase]
    return [_run(one, out, settings, minutes) for one in chosen]


def _run(phase: Phase, out: Path, settings: Embedded, minutes: float | None) -> dict[str, Any]:
    kind, train = load_stage(phase.stage)
    values: Any = read_settings(phase.config, kind, base=out)
    names = {field.name for field in dataclasses.fields(kind)}
    if settings.base is not None and phase is settings.phases[0]:
        values = dataclasses.replace(values, start=settings.base)
    elif "start" in names and not any((values.start / name).exists() for name in ("config.json", SETTINGS)):
        unpack(out / CARRIED, values.start, name=_name(values.start, out))
    if settings.base is not None and "start" in names:
        _name_base(Path(values.start), settings.base)
    _restore(getattr(values, "logs", ()), out / CARRIED)
    if "run" in names and minutes is not None:
        longest = min(minutes, values.run.minutes or minutes)
        values = dataclasses.replace(values, run=dataclasses.replace(values.run, minutes=longest))
    figures: dict[str, Any] = {"phase": phase.config.stem, **train(values)}
    made: Path = values.run.out if "run" in names else values.out
    if (made / BACKBONE).is_dir():
        carried = out / CARRIED
        pack(made / BACKBONE, carried, name=_name(made / BACKBONE, out), dtype=getattr(torch, settings.dtype))
        logs = _logs(carried)
        if (made / LOG).exists():
            logs |= {made.name: (made / LOG).read_text(encoding="utf-8")}
        (carried / LOGS).write_text(json.dumps(logs) + "\n", encoding="utf-8")
        (carried / REPORT).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return figures


def _name(folder: Path, out: Path) -> str:
    """The name of a phase's folder, the same on every machine."""
    return Path(os.path.relpath(folder, out)).as_posix()


def _name_base(folder: Path, base: str) -> None:
    """Name the stock model in a folder that has only what was added to it, perhaps on another machine."""
    file = folder / SETTINGS
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if kept.get("base") not in (None, base):
        file.write_text(json.dumps(kept | {"base": base}, indent=1) + "\n", encoding="utf-8")


def _logs(carried: Path) -> dict[str, str]:
    """The logs of the phases so far, by the names of their folders."""
    file = carried / LOGS
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def _restore(folders: Sequence[Path], carried: Path) -> None:
    """Copies logs of phases on other machines to where this one expects them."""
    known = _logs(carried)
    for folder in folders:
        if folder.name in known and not (folder / LOG).exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOG).write_text(known[folder.name], encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command, for a machine with only the packages that training needs."""
    parser = argparse.ArgumentParser(
        prog="python -m compmem_research.training.embedded", description="Train what ships."
    )
    parser.add_argument("--config", type=Path, required=True, help="the phases, in TOML")
    parser.add_argument("--out", type=Path, required=True, help="folder of data, runs and what is carried")
    parser.add_argument("--phase", type=int, help="only this phase, from 1 on")
    parser.add_argument("--minutes", type=float, help="no phase trains longer")
    parser.add_argument("--base", help="the pretrained model, in place of the recipe's")
    given = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    reports = run_all(given.config, given.out, given.phase, minutes=given.minutes, base=given.base)
    sys.stdout.write(json.dumps(reports, indent=1) + "\n")


if __name__ == "__main__":
    main()
