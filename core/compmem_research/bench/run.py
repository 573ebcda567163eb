"""A run: a folder with its settings, its machine, one line for each question and system, and their means.

A row is written and flushed when its question is done, so an interrupted run can be continued. A truncated line is
dropped, and its question is repeated.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compmem_research.bench.machine import command, machine
from compmem_research.bench.measuring import Row
from compmem_research.bench.scores import summary

CONFIG, ROWS, SCORES, ENVIRONMENT = "config.json", "predictions.jsonl", "scores.json", "environment.json"

GROWING = ("cells", "systems")
"""Settings that may change when a run is continued: new values are added."""


@dataclass(slots=True)
class Run:
    """The folder of one run."""

    folder: Path
    config: Mapping[str, Any]
    rows: list[Row] = field(default_factory=list)
    notes: dict[str, dict[str, float]] = field(default_factory=dict)
    """Facts of each cell, besides its rows."""
    failed: list[dict[str, str]] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    """Data files that were read, with the beginning of their SHA-256."""

    @classmethod
    def open(cls, folder: Path, config: Mapping[str, Any]) -> "Run":
        """A new run, or an existing one to continue.

        Raises:
            ValueError: The folder has a run with other settings, or rows that cannot be read.
        """
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / CONFIG
        if kept.exists():
            before = json.loads(kept.read_text(encoding="utf-8"))
            grown = {n: list(dict.fromkeys([*before.get(n, ()), *config.get(n, ())])) for n in GROWING}
            before, config = {**before, **grown}, {**config, **grown}
            for name in sorted({*before, *config}):
                if before.get(name) != config.get(name):
                    raise ValueError(
                        f"{str(folder)!r} has a run with {name}={before.get(name)!r}, not {config.get(name)!r}: "
                        "choose another folder, or remove it"
                    )
        _write(kept, config)
        if not (folder / ENVIRONMENT).exists():
            _write(folder / ENVIRONMENT, {"command": command(), "machine": machine()})
        run = cls(folder, config, rows=_read_rows(folder / ROWS))
        if (folder / SCORES).exists():
            before = json.loads((folder / SCORES).read_text(encoding="utf-8"))
            run.notes, run.files = before["cells"], before["files"]
        return run

    def done(self) -> set[tuple[str, str, str]]:
        """Cell, question and system of every row."""
        return {(r["cell"], r["id"], r["system"]) for r in self.rows}

    def add(self, row: Row) -> None:
        """Add a row, also to the file."""
        self.rows.append(row)
        with (self.folder / ROWS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")
            file.flush()

    def note(self, cell: str, **values: float) -> None:
        """Record facts of a whole cell."""
        self.notes[cell] = values

    def fail(self, cell: str, system: str, why: str) -> None:
        """Record that something could not be measured."""
        self.failed.append({"cell": cell, "system": system, "why": why})

    def close(self) -> None:
        """Write the means of the rows."""
        seed = int(self.config.get("seed", 0))
        result = {
            "files": self.files, "cells": self.notes, "failed": self.failed, "scores": summary(self.rows, seed),
        }  # fmt: skip
        _write(self.folder / SCORES, result)


def _read_rows(file: Path) -> list[Row]:
    if not file.exists():
        return []
    data = file.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):  # the run was killed while writing a line
        file.write_bytes(whole)
    rows: list[Row] = []
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{number}: not JSON: {error.msg}") from error
    return rows


def _shown(value: Any) -> str:
    """JSON with one list entry per line: readable and compact."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(json.dumps(v, ensure_ascii=False, separators=(",", ":")) for v in value) + "\n]"
    return json.dumps(value, ensure_ascii=False)


def _write(file: Path, value: Mapping[str, Any]) -> None:
    part = file.with_suffix(".part")
    parts = [f"{json.dumps(name)}: {_shown(entry)}" for name, entry in value.items()]
    part.write_text("{\n" + ",\n".join(parts) + "\n}\n", encoding="utf-8")
    part.replace(file)
