"""Evaluates a first pass on unseen sources, with plain rankings as baselines."""

import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from compmem.gate import Network
from compmem_research.metrics import ndcg_at, recall_at
from compmem_research.training.dense_gate.fitting import fit_first
from compmem_research.training.dense_gate.networks import block_logits
from compmem_research.training.dense_gate.settings import DenseGateTraining
from compmem_research.training.dense_gate.states import KEPT, ORIGINAL, SYSTEMS, QueryStates

logger = logging.getLogger(__name__)

LOOK = "first look"

Row = dict[str, Any]
"""Means over queries of one part of a source, by system."""


def leave_one_out(settings: DenseGateTraining, asked: Sequence[QueryStates]) -> list[Row]:
    """For each group of sources: a first pass trained on all others, evaluated on it."""
    rows: list[Row] = []
    for group in sorted({a.source.group for a in asked}):
        rest = [a for a in asked if not a.source.touches(group)]
        if rest:
            network = fit_first(settings, rest, heads=settings.heads)
            rows += judge(network, [a for a in asked if a.source.group == group])
            logger.info("left out %s: learned from %d queries", group, len(rest))
    return rows


def judge(network: Network, asked: Sequence[QueryStates]) -> list[Row]:
    """Recall@5 and nDCG@10 in percent, for original and for restyled queries with relevant blocks."""
    parts: dict[tuple[str, str, bool], list[QueryStates]] = defaultdict(list)
    for a in asked:
        if a.relevant:
            parts[a.source.group, a.part, a.style == ORIGINAL].append(a)
    rows = []
    for (group, part, plain), own in sorted(parts.items(), key=lambda item: (*item[0][:2], not item[0][2])):
        rankings = {name: [a.ranked[name] for a in own] for name in SYSTEMS} | {LOOK: [best(network, a) for a in own]}
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
    logits, _ = block_logits(network, asked.look.first, asked.look.rows)
    return [int(asked.look.blocks[n]) for n in np.argsort(-logits, kind="stable")[:KEPT]]


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown, recall@5 / nDCG@10, with their mean last."""
    systems = (*SYSTEMS, LOOK)
    lines = [
        f"| source | queries | {' | '.join(systems)} |",
        f"| --- | ---: |{' ---: |' * len(systems)}",
    ]
    lines += [_line(f"{row['part']}, {row['style']}", str(row["queries"]), [row[s] for s in systems]) for row in rows]
    if rows:
        means = [{k: float(np.mean([row[s][k] for row in rows])) for k in ("recall@5", "ndcg@10")} for s in systems]
        lines.append(_line("mean of the rows", str(sum(row["queries"] for row in rows)), means))
    return "\n".join(lines) + "\n"


def _line(name: str, count: str, figures: Sequence[dict[str, float]]) -> str:
    cells = [f"{f['recall@5']:.1f} / {f['ndcg@10']:.1f}" for f in figures]
    return f"| {' | '.join([name, count, *cells])} |"


def _percent(values: Sequence[float]) -> float:
    return round(100 * float(np.mean(values)), 2)
