"""What the rows of `bench fusion` say: means with intervals, by method and ratio."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from compmem_research.metrics import bootstrap_interval

COLUMNS: Final = ("system", "ratio", "questions", "F1", "EM", "loss", "first token, s (processor)", "MiB of states")

READING: Final = (
    "Each question is asked over its gold paragraphs and others of its own context, the first hop first and the others "
    "in a random order. `text` is one plain pass over the same tokens in the same order; `none` is independent blocks. "
    "F1 and exact match in per cent, with 95 % bootstrap intervals; loss is the cross entropy of the right answer, in "
    "nats a token, which tells methods apart on fewer questions. The seconds to the first token count what a method "
    "computes again, and not the compression, which is done once for an index; in brackets those of the processor."
)


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The means of each system at each ratio, text first."""
    groups: dict[tuple[int, str], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: str(r["id"])):  # their order decides nothing
        groups.setdefault((row["ratio"], row["method"]), []).append(row)
    return [_means(method, ratio, group) for (ratio, method), group in sorted(groups.items(), key=lambda g: g[0][0])]


def cells(row: Mapping[str, Any]) -> list[str]:
    """A line of the table."""
    shares = [f"{row[n]:.1f} [{row[f'{n} 95%'][0]:.0f}, {row[f'{n} 95%'][1]:.0f}]" for n in ("f1", "em")]
    clock, processor = row["first_seconds"]
    loss = f"{row['loss']:.2f} [{row['loss 95%'][0]:.2f}, {row['loss 95%'][1]:.2f}]" if "loss" in row else "-"
    ratio = "-" if row["ratio"] == 0 else str(row["ratio"])
    size = "-" if row["ratio"] == 0 else f"{row['bytes'] / (1 << 20):.1f}"
    return [row["method"], ratio, str(row["questions"]), *shares, loss, f"{clock:.2f} ({processor:.2f})", size]


def pages(run: Mapping[str, Any]) -> Iterator[str]:
    """The result as Markdown."""
    settings = run["settings"]
    yield from (READING, "")
    yield (
        f"Model: {run['backbone']}; {settings['blocks']} paragraphs, a share of {settings['share']} or the first "
        f"{settings['first']} tokens of a block computed again, at most {settings['max_tokens']} tokens written."
    )
    yield ""
    yield f"| {' | '.join(COLUMNS)} |"
    yield "| --- |" + " ---: |" * (len(COLUMNS) - 1)
    yield from (f"| {' | '.join(cells(row))} |" for row in run["fusion"])


def _means(method: str, ratio: int, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {"method": method, "ratio": ratio, "questions": len(rows)}
    for name in ("f1", "em"):
        values = [100 * float(row[name]) for row in rows]
        low, high = bootstrap_interval(values)
        out |= {name: round(float(np.mean(values)), 1), f"{name} 95%": [round(low, 1), round(high, 1)]}
    if losses := [row["loss"] for row in rows if row["loss"] is not None]:
        low, high = bootstrap_interval(losses)
        out |= {"loss": round(float(np.mean(losses)), 3), "loss 95%": [round(low, 3), round(high, 3)]}
    for name in ("first_seconds", "seconds"):
        out[name] = np.mean([row[name] for row in rows], axis=0).round(3).tolist()
    return out | {"bytes": round(float(np.mean([row["bytes"] for row in rows])))}
