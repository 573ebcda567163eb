"""The effect of each threshold on held-out queries, and the choice of the threshold for `found`."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from compmem.gate import GateHead
from compmem.schema import Vectors
from compmem_research.metrics import calibration_error
from compmem_research.training.dense_gate.fitting import HeldOut
from compmem_research.training.dense_gate.states import Labels

READ = (0.05, 0.1, 0.2, 0.3, 0.5)
MORE = (0.02, 0.05, 0.1, 0.2)
REFUSED = (0.01, 0.02, 0.03, 0.05, 0.1)


def choose(head: GateHead, held: HeldOut, refused: float) -> dict[str, Any]:
    """Sets the gate's threshold for `found`; returns calibration and thresholds for the report.

    Args:
        head: A calibrated gate.
        held: Outputs of cross-fitted networks.
        refused: Largest share of answerable queries that may be refused.
    """
    first, later = (
        (np.concatenate([head.calibrated(logits, n) for logits, _ in said]), np.concatenate([y for _, y in said]))
        for n, said in enumerate((held.first, held.later))
    )
    more = np.array([head.calibrated(logits[:1], 2)[0] for _, logits in held.judged])
    found = np.array([head.calibrated(logits[1:], 3)[0] for _, logits in held.judged])
    helps = np.array([j.more for j, _ in held.judged])
    answers = np.array([j.found for j, _ in held.judged])
    plain = np.array([j.plain for j, _ in held.judged])
    answerable, unanswerable = found[plain & (answers == 1)], found[answers == 0]
    head.found_threshold = refusing(answerable, refused)
    pairs = {"first": first, "later": later, "more": (more[helps >= 0], helps[helps >= 0]), "found": (found, answers)}
    return {
        "calibration": {
            name: {
                "slope": round(float(slope), 4),
                "bias": round(float(bias), 4),
                "error": round(calibration_error(p, y), 4),
                "examples": len(y),
            }
            for (name, (p, y)), (slope, bias) in zip(pairs.items(), head.calibration.tolist(), strict=True)
        },
        "thresholds": {
            "read": [_read(head, held, threshold) for threshold in READ],
            "more": [_more(more[plain], helps[plain], threshold) for threshold in MORE],
            "found": [
                {
                    "threshold": round(at, 6),
                    "answerable_refused": _share(answerable < at),
                    "unanswerable_refused": _share(unanswerable < at),
                }
                for at in (refusing(answerable, share) for share in REFUSED)
            ],
        },
    }


def refusing(answerable: Vectors, share: float) -> float:
    """The largest threshold with at most this share of the probabilities of answerable queries below it."""
    if not len(answerable):
        return 0.0
    rising = np.sort(answerable)
    return float(rising[min(int(share * len(rising)), len(rising) - 1)])


def _read(head: GateHead, held: HeldOut, threshold: float) -> dict[str, float]:
    passed = [head.calibrated(logits, 0) >= threshold for logits, _ in held.first]
    relevant = [y == 1 for _, y in held.first]
    hits = sum(int((p & y).sum()) for p, y in zip(passed, relevant, strict=True))
    read = sum(int(p.sum()) for p in passed)
    return {
        "threshold": threshold,
        "precision": round(hits / max(read, 1), 3),
        "recall": round(hits / max(sum(int(y.sum()) for y in relevant), 1), 3),
        "blocks": round(read / max(len(passed), 1), 2),
    }


def _more(more: Vectors, helps: Labels, threshold: float) -> dict[str, float | None]:
    return {
        "threshold": threshold,
        "needed": _share(more[helps == 1] >= threshold),
        "not_needed": _share(more[helps == 0] >= threshold),
    }


def _share(values: Sequence[bool] | Any) -> float | None:
    """The share of true labels; None if there are none."""
    return round(float(np.mean(values)), 3) if len(values) else None
