"""Summaries of a run's rows: a mean with its 95 % bootstrap interval for each cell and system."""

from collections import Counter
from collections.abc import Sequence
from statistics import mean
from typing import Any

from compmem_research.bench.measuring import TIMES
from compmem_research.bench.systems import RECALLED
from compmem_research.metrics import bootstrap_interval

SHARES = ("score", "em", "f1", "sub_em", "sub_em_two_way", f"recall@{RECALLED}", "proposed", "read")
"""Scores in [0, 1], shown in per cent with an interval."""

COUNTS = ("blocks", "steps", "in", "out", "disk")

Figures = dict[str, Any]


def summary(rows: Sequence[dict[str, Any]], seed: int = 0) -> list[Figures]:
    """One entry for each cell and system, in the order of their first rows."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: str(r["id"])):  # the result does not depend on the order of rows
        groups.setdefault((row["cell"], row["system"]), []).append(row)
    order = list(dict.fromkeys((r["cell"], r["system"]) for r in rows))
    return [_figures(cell, system, groups[cell, system], seed) for cell, system in order]


def _figures(cell: str, system: str, rows: Sequence[dict[str, Any]], seed: int) -> Figures:
    out: Figures = {"cell": cell, "system": system, "questions": len(rows)}
    for name in SHARES:
        if values := [100 * float(r[name]) for r in rows if name in r]:
            out[name] = _mean(values, 1, seed)
    for name in COUNTS:
        out[name] = round(mean(r[name] for r in rows), 2)
    for name in TIMES:
        for place, clock in enumerate(("clock", "processor")):
            values = [float(r[name][place]) for r in rows]
            out[f"{name} {clock}"] = _mean(values, 4, seed)
    peaks = [r["peak"] for r in rows if r["peak"] is not None]
    out["peak"] = max(peaks) if peaks else None
    if exits := Counter(r["exit"] for r in rows if "exit" in r):
        total = sum(exits.values())
        out["exit"] = {kind: round(100 * exits[kind] / total, 1) for kind in ("early", "exact", "late")}
    out["extrapolated"] = any("timed_steps" in r for r in rows)
    if curve := _curve([r["memory"] for r in rows]):
        out["memory"] = curve
    return out


def _mean(values: Sequence[float], digits: int, seed: int) -> list[float]:
    """The exact mean and its interval, rounded; a sum in floats rounds some means of seconds to another digit."""
    return [round(value, digits) for value in (mean(values), *bootstrap_interval(values, seed=seed))]


def _curve(lists: Sequence[Sequence[int]]) -> list[float]:
    """Mean tokens of working memory after each step; a loop that has ended keeps its last value."""
    longest = max((len(tokens) for tokens in lists), default=0)
    held = [tokens for tokens in lists if tokens]
    return [round(mean(t[min(step, len(t) - 1)] for t in held), 1) for step in range(longest)]
