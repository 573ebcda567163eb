"""Tables of all sets and systems, made only from the result file."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from compmem_research.bench.retrieval import SYSTEMS
from compmem_research.bench.styles import UNCHANGED

Entry = Mapping[str, Any]

ALL: Final = tuple(SYSTEMS)

READING = (
    "The difference is to the plain system (dense, BM25, fused) "
    "that is best on the set in that score, chosen on the same questions, with a paired bootstrap interval. Nothing "
    "found: of the questions without an answer, those for which a system says so; false alarms: of the questions with "
    "one. A plain system says so only where its ranking is empty. Per cent, 95 % bootstrap intervals; a passage is a "
    "document."
)


def pages(run: Mapping[str, Any]) -> Iterator[str]:
    """A table of all sets, and one with intervals for each set and style."""
    limit = run["settings"]["limit"]
    yield READING
    if limit is not None:
        yield f"At most the first {limit} questions of a set with an answer, and as many without."
    if run["settings"].get("foreign"):
        yield "Those without an answer are questions that the other sets answer."
    yield from ("", "recall@5 / nDCG@10:", "")
    yield f"| set (questions, passages) | style | {' | '.join(ALL)} |"
    yield "| --- | --- |" + " ---: |" * len(ALL)
    for row in overview(run["sets"]):
        yield f"| {' | '.join(row)} |"
    for entry in run["sets"]:
        style = "" if entry["style"] == UNCHANGED else f", {entry['style']}"
        yield from ("", f"### {entry['set']}{style}", "", *_table(entry))


def overview(sets: Sequence[Entry]) -> Iterator[list[str]]:
    """A row for each set and style, and the mean over the sets of each style: recall@5 / nDCG@10 of every system."""
    for style in dict.fromkeys(e["style"] for e in sets):
        own = [e for e in sets if e["style"] == style]
        for e in own:
            asked = f"{e['set']} ({e['questions']:,}, {e['passages']:,})"
            yield [asked, style, *_marked({name: _pair([e["systems"][name]]) for name in ALL})]
        if len(own) > 1:
            yield ["mean over sets", style, *_marked({n: _pair([e["systems"][n] for e in own]) for n in ALL})]


def _pair(rows: Sequence[Entry]) -> tuple[float, float] | None:
    """The means of recall@5 and nDCG@10; None where no question has an answer."""
    known = [(row["recall@5"], row["ndcg@10"]) for row in rows if "recall@5" in row]
    if not known:
        return None
    recall, gain = np.mean(known, axis=0)
    return round(float(recall), 1), round(float(gain), 1)


def _marked(pairs: Mapping[str, tuple[float, float] | None]) -> list[str]:
    """The scores, with the best of each kind in bold."""
    known = [p for p in pairs.values() if p is not None]
    best = [max((p[i] for p in known), default=0.0) for i in range(2)]
    shown = [[f"**{v:.1f}**" if v == top else f"{v:.1f}" for v, top in zip(p, best, strict=True)] if p else ["-"]
             for p in pairs.values()]  # fmt: skip
    return [" / ".join(figures) for figures in shown]


def _table(entry: Entry) -> Iterator[str]:
    yield f"{entry['questions']} questions, {entry['unanswerable']} without an answer; {entry['passages']} passages."
    yield ""
    yield (
        "| system | recall@5 | to the best plain | nDCG@10 | to the best plain | nothing found | false alarms "
        "| median seconds |"
    )
    yield "| --- |" + " ---: |" * 7
    for name, row in entry["systems"].items():
        cells = [
            _figure(row, "recall@5"), _difference(row, "recall@5"),
            _figure(row, "ndcg@10"), _difference(row, "ndcg@10"),
            _figure(row, "nothing_found"), _figure(row, "false_alarms"), f"{row['median_seconds']:.3f}",
        ]  # fmt: skip
        yield f"| {name} | {' | '.join(cells)} |"


def _figure(row: Entry, name: str) -> str:
    if name not in row:
        return "-"
    low, high = row[f"{name} 95%"]
    return f"{row[name]:.1f} [{low:.1f}, {high:.1f}]"


def _difference(row: Entry, name: str) -> str:
    if "difference" not in row:
        return "-"
    found = row["difference"][name]
    low, high = found["95%"]
    return f"{found['mean']:+.1f} [{low:+.1f}, {high:+.1f}] ({found['to']})"
