"""The report of a speed measurement: rows by system and length, ratios, growth, and a table."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from compmem_research.bench.machine import command, machine
from compmem_research.bench.timing_config import SpeedSettings

Row = dict[str, Any]
"""One system at one length."""

BASELINE = "MemAgent's loop"


def report(
    cells: Mapping[str, Mapping[str, Any]],
    about: Mapping[str, Any],
    rules: SpeedSettings,
    lengths: Mapping[str, int],
    left: Sequence[str],
) -> dict[str, Any]:
    """All measurements in one result.

    Args:
        cells: Finished measurements by name.
        about: Backbone, device, dtype.
        rules: Settings that all systems share.
        lengths: Tokens of each document by name.
        left: Names of cells that are not measured yet.
    """
    rows = [row for name, tokens in lengths.items() for row in _rows(cells, rules, name, tokens)]
    for row in rows:
        base = next((r for r in rows if r["system"] == BASELINE and r["length"] == row["length"]), None)
        for kind in ("first", "warm"):
            ours = row[f"{kind}_seconds"]
            row[f"{kind}_times_faster"] = base[f"{kind}_seconds"] / ours if base and ours else None
    return {
        "command": command(),
        "machine": machine(),
        **about,
        "rules": asdict(rules),
        "rates": {name: value for name, value in cells.get("rates", {}).items() if name != "took"},
        "batch": cells.get("batch"),
        "rows": rows,
        "growth": _growth(rows),
        "cells": dict(cells),
        "left": list(left),
    }


def _rows(cells: Mapping[str, Mapping[str, Any]], rules: SpeedSettings, name: str, tokens: int) -> list[Row]:
    steps = -(-tokens // rules.chunk_tokens)
    ours = cells.get(f"compmem {name}")
    rows = [_failed("CompMem", name, ours["failed"])] if ours and "failed" in ours else []
    indexed = ours if ours and "failed" not in ours else None
    read = min(rules.recalled, steps)
    if indexed is not None:
        for label, kind, taken in (
            ("one block a step", "one", read),
            (f"{rules.recalled} blocks a step", "several", 1),
        ):
            rows.append(_compmem(f"CompMem, {label}", name, indexed, kind, _decoded(rules, taken)))
    for system, cell in (
        (BASELINE, "memagent"), ("MemAgent's loop, stock generate()", "memagent generate"),
        ("the loop without a gate", "no gate"),
    ):  # fmt: skip
        loop = _beside(cells.get(f"loop {cell}"), (indexed or {}).get(cell))
        if loop and "failed" in loop:
            rows.append(_failed(system, name, loop["failed"]))
        elif loop and (cell != "no gate" or indexed is not None):
            rows.append(
                _loop(system, name, loop, indexed if cell == "no gate" else None, steps, _decoded(rules, steps))
            )
    full = cells.get(f"full {name}")
    if full and "failed" in full:
        rows.append(_failed("the whole document in the context", name, full["failed"]))
    elif full:
        seconds = full["answer"]["seconds"]
        rows.append(
            _row("the whole document in the context", name, None, seconds, seconds, rules.answer_tokens,
                 peak=full["answer"]["peak"])
        )  # fmt: skip
    return rows


def _beside(loop: Mapping[str, Any] | None, seconds: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """A loop's cell with the seconds measured in alternation with our answers."""
    if not loop or "failed" in loop or not seconds:
        return loop
    timed = {part: {**loop[part], "seconds": seconds[part]} for part in ("step", "answer")}
    return {**loop, **timed, "steps": seconds["steps"]}


def _compmem(system: str, name: str, cell: Mapping[str, Any], kind: str, decoded: int) -> Row:
    index, cold, warm = cell["index"], cell[f"cold {kind}"], cell[f"warm {kind}"]
    row = _row(
        system, name, index["seconds"], index["seconds"] + cold["seconds"], warm["seconds"], decoded,
        peak=_highest(cold["peak"], warm["peak"]),
    )  # fmt: skip
    return {**row, "index_peak_bytes": index["peak"], "disk_bytes": cell["disk_bytes"], "blocks": cell["blocks"]}


def _loop(
    system: str, name: str, cell: Mapping[str, Any], indexed: Mapping[str, Any] | None, steps: int, decoded: int
) -> Row:
    seconds = steps * cell["step"]["seconds"] + cell["answer"]["seconds"]
    index = indexed["index"]["seconds"] if indexed else None
    row = _row(system, name, index, seconds + (index or 0.0), seconds, decoded, peak=cell["step"]["peak"])
    row |= {"steps": steps, "timed_steps": cell["steps"], "extrapolated": steps != cell["steps"]}
    return row | ({"disk_bytes": indexed["disk_bytes"]} if indexed else {})


def _row(
    system: str, name: str, index: float | None, first: float, warm: float, decoded: int, *, peak: int | None
) -> Row:
    return {
        "system": system, "length": name, "index_seconds": index, "first_seconds": first, "warm_seconds": warm,
        "decoded_tokens_per_second": decoded / warm, "peak_bytes": peak, "disk_bytes": None, "extrapolated": False,
    }  # fmt: skip


def _failed(system: str, name: str, why: str) -> Row:
    return {
        "system": system, "length": name, "index_seconds": None, "first_seconds": None, "warm_seconds": None,
        "decoded_tokens_per_second": None, "peak_bytes": None, "disk_bytes": None, "extrapolated": False, "failed": why,
    }  # fmt: skip


def _decoded(rules: SpeedSettings, steps: int) -> int:
    return steps * rules.memory_tokens + rules.answer_tokens


def _highest(*peaks: int | None) -> int | None:
    known = [p for p in peaks if p is not None]
    return max(known) if known else None


def _growth(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Slopes of log seconds over log tokens: 0 is constant, 1 linear, 2 quadratic. Failed rows are left out."""
    units = {"K": 1e3, "M": 1e6}
    slopes: dict[str, dict[str, float]] = {}
    for system in dict.fromkeys(row["system"] for row in rows):
        mine = [r for r in rows if r["system"] == system and r["warm_seconds"]]
        if len(mine) < 2:
            continue
        tokens = np.log([float(r["length"][:-1]) * units[r["length"][-1]] for r in mine])
        slopes[system] = {
            kind: round(float(np.polyfit(tokens, np.log([r[f"{kind}_seconds"] for r in mine]), 1)[0]), 3)
            for kind in ("first", "warm")
        }
    return slopes


def table(result: Mapping[str, Any]) -> list[str]:
    """The result as lines of a Markdown table, with the rates and growth below it."""
    lines = [
        f"{result['backbone']} ({result['parameters'] / 1e6:.0f}M parameters), {result['compressor']}, "
        f"{result['device']}, {result['dtype']}",
        "",
        "| length | system | index s | first answer s | warm answer s | x MemAgent first | warm | decoded tokens/s "
        "| peak MB | disk MB |",
        "| --- | --- " + "| --: " * 8 + "|",
    ]
    for row in result["rows"]:
        mark = " (extrapolated)" if row["extrapolated"] else ""
        figures = [
            _shown(row["index_seconds"]), _shown(row["first_seconds"]), _shown(row["warm_seconds"]),
            _shown(row["first_times_faster"]), _shown(row["warm_times_faster"]),
            _shown(row["decoded_tokens_per_second"]), _megabytes(row["peak_bytes"]), _megabytes(row["disk_bytes"]),
        ]  # fmt: skip
        lines.append(f"| {row['length']} | {row['system']}{mark} | " + " | ".join(figures) + " |")
        if "failed" in row:
            lines[-1] += f" {row['failed']}"
    lines += ["", *(f"growth of {s}: first {g['first']}, warm {g['warm']}" for s, g in result["growth"].items())]
    lines += [f"{name}: {_shown(value)}" for name, value in result["rates"].items()]
    if result["left"]:
        lines.append(f"not measured yet: {', '.join(result['left'])}; run the command again")
    return lines


def _shown(value: float | str | None) -> str:
    return (
        "-" if value is None else value if isinstance(value, str) else f"{value:.3g}" if value < 100 else f"{value:.0f}"
    )


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.0f}"
