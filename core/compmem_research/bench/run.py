"""A run: a folder with its settings, its machine, one line for each question and system, and their means.

A row is written when its question is done, so an interrupted run can be continued.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compmem_research.bench.machine import command, machine
from compmem_research.bench.scores import summary
from compmem_research.resume import Rows, changes, read_progress, write_whole

CONFIG, ROWS, SCORES, ENVIRONMENT = "config.json", "predictions.jsonl", "scores.json", "environment.json"

GROWING = ("cells", "systems")
"""Settings that may change when a run is continued: new values are added."""


@dataclass(slots=True)
class Run:
    """The folder of one run."""

    folder: Path
    config: Mapping[str, Any]
    rows: Rows
    notes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Facts of each cell, besides its rows."""
    failed: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Data files that were read, and the backbone, with the beginning of their SHA-256."""

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any]) -> "Run":
        """A new run, or an existing one to continue.

        Raises:
            ValueError: The folder has a run with other settings, or rows that cannot be read.
        """
        kept, fixed = folder / CONFIG, _without_growing(config)
        before = read_progress(kept, fixed, lambda found: (_without_growing(found), found)) or {}
        config = {**config, **{n: list(dict.fromkeys([*before.get(n, ()), *config.get(n, ())])) for n in GROWING}}
        _write(kept, config)
        if not (folder / ENVIRONMENT).exists():
            _write(folder / ENVIRONMENT, {"command": command(), "machine": machine()})
        run = cls(folder, config, Rows.open(folder / ROWS, ("cell", "id", "system")))
        if (folder / SCORES).exists():
            before = json.loads((folder / SCORES).read_text(encoding="utf-8"))
            run.notes, run.files = before["cells"], before["files"]
        return run

    def use(self, files: Mapping[str, str]) -> None:
        """Record what is read, and write it before the first row.

        Raises:
            ValueError: The run read something else by one of these names.
        """
        known = {name: value for name, value in self.files.items() if name in files}
        if other := changes(known, {name: files[name] for name in known}):
            raise ValueError(f"{str(self.folder)!r} was measured with {other}: choose another place")
        self.files |= files
        self.close()

    def note(self, cell: str, **values: float) -> None:
        """Record facts of a whole cell."""
        self.notes[cell] = values

    def fail(self, cell: str, system: str, why: str) -> None:
        """Record that something could not be measured."""
        self.failed.append({"cell": cell, "system": system, "why": why})

    def close(self) -> None:
        """Write the means of the rows."""
        seed = int(self.config.get("seed", 0))
        scores = summary(list(self.rows.by_key.values()), seed)
        result = {"files": self.files, "cells": self.notes, "failed": self.failed, "scores": scores}
        _write(self.folder / SCORES, result)


def _without_growing(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in GROWING}


def _shown(value: Any) -> str:
    """JSON with one list entry per line: readable and compact."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def _write(file: Path, value: Mapping[str, Any]) -> None:
    parts = [f"{json.dumps(name)}: {_shown(entry)}" for name, entry in value.items()]
    write_whole(file, "{\n" + ",\n".join(parts) + "\n}\n")
