"""Evaluates a gate on unseen sources: its first pass beside plain rankings, and what `found` refuses."""

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from compmem.gate import GateHead, Network
from compmem.schema import Vectors
from compmem_research.metrics import ndcg_at, recall_at
from compmem_research.training.dense_gate.fitting import HeldOut, fit_first, judged_queries, query_logits
from compmem_research.training.dense_gate.networks import block_logits, fit_judged
from compmem_research.training.dense_gate.settings import DenseGateTraining
from compmem_research.training.dense_gate.states import ORIGINAL, STORED_BLOCKS, SYSTEMS, QueryStates
from compmem_research.training.dense_gate.thresholds import refusing

logger = logging.getLogger(__name__)

FIRST_RANKING = "first look"
"""The ranking of the first pass, in rows of a report."""

Row = dict[str, Any]
"""Means over queries of one part of a source, by system."""


@dataclass(slots=True)
class LeftOut:
    """Results for each group of sources, by networks that were trained without it."""

    rows: list[Row] = field(default_factory=list)
    """Of the first pass; see `judge`."""
    answerable: dict[str, Vectors] = field(default_factory=dict)
    """For each group, `found` of its queries with relevant blocks."""
    unanswerable: dict[str, Vectors] = field(default_factory=dict)
    """For each group, `found` of queries without relevant blocks, those whose relevant blocks were removed included."""

    def threshold(self, refused: float) -> float:
        """The largest threshold with at most this share of answerable queries below it in every group."""
        return min((refusing(found, refused) for found in self.answerable.values() if len(found)), default=0.0)

    def refused(self, threshold: float) -> dict[str, dict[str, float]]:
        """For each group, how many queries are answerable and the shares that a threshold refuses."""
        return {
            group: {
                "answerable": len(found),
                "answerable_refused": _below(found, threshold),
                "unanswerable_refused": _below(self.unanswerable[group], threshold),
            }
            for group, found in self.answerable.items()
        }


def leave_one_out(settings: DenseGateTraining, asked: Sequence[QueryStates], head: GateHead, held: HeldOut) -> LeftOut:
    """Trains without each group of sources and evaluates on it.

    Args:
        settings: The run's settings.
        asked: All queries.
        head: The gate trained on all of them; only its calibration is used.
        held: Outputs of cross-fitted networks for them, from which the network of the question is trained.
    """
    source = {a.part: a.source for a in asked}
    left = LeftOut()
    for group in sorted({a.source.group for a in asked}):
        rest = [a for a in asked if not a.source.touches(group)]
        if not rest:
            continue
        own = [a for a in asked if a.source.group == group]
        network = fit_first(settings, rest, heads=settings.heads)
        left.rows += judge(network, own)
        of_question = fit_judged(
            settings, [j for j, _ in held.judged if not source[j.part].touches(group)], heads=settings.heads
        )
        judged = judged_queries(settings, own, network)
        found = head.calibrated(query_logits(of_question, judged)[:, 1], 3)
        answers = np.array([j.found == 1 for j in judged])
        left.answerable[group] = found[answers & np.array([j.plain for j in judged])]
        left.unanswerable[group] = found[~answers]
        logger.info("left out %s: trained on %d queries", group, len(rest))
    return left


def judge(network: Network, asked: Sequence[QueryStates]) -> list[Row]:
    """Recall@5 and nDCG@10 in percent, for original and for restyled queries with relevant blocks."""
    parts: dict[tuple[str, str, bool], list[QueryStates]] = defaultdict(list)
    for a in asked:
        if a.relevant:
            parts[a.source.group, a.part, a.style == ORIGINAL].append(a)
    rows = []
    for (group, part, plain), own in sorted(parts.items(), key=lambda item: (*item[0][:2], not item[0][2])):
        rankings = {name: [a.ranked[name] for a in own] for name in SYSTEMS} | {
            FIRST_RANKING: [best(network, a) for a in own]
        }
        row: Row = {"group": group, "part": part, "style": ORIGINAL if plain else "restyled", "queries": len(own)}
        for name, ranked in rankings.items():
            row[name] = {
                "recall@5": _percent([recall_at(r, a.relevant, 5) for r, a in zip(ranked, own, strict=True)]),
                "ndcg@10": _percent([ndcg_at(r, a.relevant, 10) for r, a in zip(ranked, own, strict=True)]),
            }
        rows.append(row)
    return rows


def best(network: Network, asked: QueryStates) -> list[int]:
    """The numbers of the blocks with the highest first-pass logits."""
    logits, _ = block_logits(network, asked.first_pass.first, asked.first_pass.rows)
    return [int(asked.first_pass.blocks[n]) for n in np.argsort(-logits, kind="stable")[:STORED_BLOCKS]]


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown, recall@5 / nDCG@10, with their mean last."""
    systems = (*SYSTEMS, FIRST_RANKING)
    lines = [
        f"| source | queries | {' | '.join(systems)} |",
        f"| --- | ---: |{' ---: |' * len(systems)}",
    ]
    groups = Counter(part for part, _ in {(row["part"], row["group"]) for row in rows})
    for row in rows:
        name = row["part"] if groups[row["part"]] == 1 else f"{row['part']} of {row['group']}"
        lines.append(_line(f"{name}, {row['style']}", str(row["queries"]), [row[s] for s in systems]))
    if rows:
        means = [{k: float(np.mean([row[s][k] for row in rows])) for k in ("recall@5", "ndcg@10")} for s in systems]
        lines.append(_line("mean of the rows", str(sum(row["queries"] for row in rows)), means))
    return "\n".join(lines) + "\n"


def _line(name: str, count: str, figures: Sequence[dict[str, float]]) -> str:
    cells = [f"{f['recall@5']:.1f} / {f['ndcg@10']:.1f}" for f in figures]
    return f"| {' | '.join([name, count, *cells])} |"


def _below(found: Vectors, threshold: float) -> float:
    return round(float((found < threshold).mean()), 3) if len(found) else 0.0


def _percent(values: Sequence[float]) -> float:
    return round(100 * float(np.mean(values)), 2)
