"""Summaries of a run's rows: means with intervals, and CompMem against plain RAG on the same questions."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from compmem_research.bench.answers_systems import BASELINES, SYSTEMS
from compmem_research.metrics import mean_figures, mean_with_interval

SHARES: Final = ("f1", "em", "in_context")
"""Scores in [0, 1], shown in per cent with an interval."""

COUNTS: Final = ("calls", "rounds", "prompt_tokens", "completion_tokens", "seconds", "retrieval_seconds")

OURS: Final = tuple(name for name in SYSTEMS if name.startswith(("fused", "loop")))

PUBLISHED: Final[Mapping[str, Mapping[str, float]]] = {
    "2wiki": {"dense": 49.8, "HippoRAG": 58.5, "PropRAG": 64.6},
    "hotpotqa": {"dense": 71.1, "HippoRAG": 70.1, "PropRAG": 72.3},
    "musique": {"dense": 39.0, "HippoRAG": 39.5, "PropRAG": 42.7},
}
"""F1 as published with Qwen3-8B and 5 passages, on other samples, as a reference for a larger model."""

READING: Final = (
    "F1, exact match and the share of contexts that hold the answer (of the questions whose answer is not yes or no) "
    "in per cent, with 95 % bootstrap intervals; calls, tokens and seconds are means a question. All systems of a "
    "table ask the same model with the same number of passages, the same words on how short to answer and the same "
    "limit of tokens. Differences are over the questions that both systems answered, resampled in pairs; seconds are "
    "compared where both were measured with the same settings."
)


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """`systems`: the means of each; `paired`: F1 of our systems minus that of plain RAG, on the same questions."""
    by_system: dict[str, dict[tuple[str, str], Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda r: (str(r["data"]), str(r["id"]))):  # the result does not depend on the order
        by_system.setdefault(str(row["system"]), {})[str(row["data"]), str(row["id"])] = row
    named = [name for name in SYSTEMS if name in by_system]
    return {
        "systems": {name: _means(list(by_system[name].values())) for name in named},
        "paired": [
            pair
            for ours in OURS
            for plain in BASELINES
            if (pair := _paired(ours, plain, by_system.get(ours, {}), by_system.get(plain, {})))
        ],
    }


def pages(run: Mapping[str, Any]) -> Iterator[str]:
    """The result as Markdown."""
    settings = run["settings"]
    yield from (READING, "")
    yield (
        f"Model: {settings['model']}, {settings['k']} passages, at most {settings['max_tokens']} tokens, told: "
        f'"{settings["instruction"]}"'
    )
    yield ""
    for one in run["answers"]:
        yield from (f"### {one['data']}, {one['passages']} passages", "", *_page(one))
        for name, published in PUBLISHED.items():
            if one["data"].startswith(name):
                told = ", ".join(f"{system} {value}" for system, value in published.items())
                yield from (f"Published F1 with Qwen3-8B and 5 passages, other samples: {told}.", "")
    if len(run["answers"]) > 1:
        yield from ("### All of them", "", *_page(run["pooled"]))
    if run["failed"]:
        yield from (f"Calls that failed and are in no figure: {run['failed']}.", "")


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {"questions": len(rows)}
    for name in SHARES:
        out |= mean_figures(name, [100 * float(row[name]) for row in rows if name in row])
    for name in COUNTS:
        out[name] = round(float(np.mean([row[name] for row in rows])), 2)
    return out


def _paired(
    ours: str, plain: str, mine: Mapping[Any, Mapping[str, Any]], theirs: Mapping[Any, Mapping[str, Any]]
) -> dict[str, Any] | None:
    both = [key for key in mine if key in theirs]
    if not both:
        return None
    gains = [100 * (float(mine[key]["f1"]) - float(theirs[key]["f1"])) for key in both]
    mean, interval = mean_with_interval(gains)
    made = {"ours": ours, "plain": plain, "questions": len(both), "f1": mean, "95%": interval}
    if any(mine[key]["fingerprint"] != theirs[key]["fingerprint"] for key in both):
        return made  # measured at other times, perhaps on another machine
    time = sum(mine[key]["seconds"] for key in both) / max(sum(theirs[key]["seconds"] for key in both), 1e-9)
    return made | {"time": round(time, 2)}


def _page(one: Mapping[str, Any]) -> Iterator[str]:
    yield "| system | questions | F1 | EM | answer in context | calls | tokens in / out | seconds, of them retrieval |"
    yield "| --- |" + " ---: |" * 7
    for name, row in one["systems"].items():
        shares = " | ".join(_share(row, share) for share in SHARES)
        yield (
            f"| {name} | {row['questions']} | {shares} | {row['calls']:.2f} | {row['prompt_tokens']:.0f} / "
            f"{row['completion_tokens']:.0f} | {row['seconds']:.1f}, {row['retrieval_seconds']:.1f} |"
        )
    yield ""
    for pair in one["paired"]:
        low, high = pair["95%"]
        took = f", {pair['time']:.2f} times its seconds" if "time" in pair else ""
        yield (
            f"* {pair['ours']} less {pair['plain']}, {pair['questions']} questions: F1 {pair['f1']:+.1f} "
            f"[{low:+.1f}, {high:+.1f}]{took}."
        )
    yield ""


def _share(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        return "-"
    low, high = row[f"{name} 95%"]
    return f"{row[name]:.1f} [{low:.0f}, {high:.0f}]"
