"""The stage: states of all sources, the gate, its thresholds, the report, and its evaluation on unseen sources."""

import json
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from compmem.schema import Encoder
from compmem_research.training.dense_gate.cache import states_of
from compmem_research.training.dense_gate.fitting import fit_gate
from compmem_research.training.dense_gate.judging import leave_one_out, table
from compmem_research.training.dense_gate.settings import DenseGateTraining
from compmem_research.training.dense_gate.sources import sources
from compmem_research.training.dense_gate.states import ORIGINAL, QueryStates
from compmem_research.training.dense_gate.thresholds import choose

logger = logging.getLogger(__name__)


def train(settings: DenseGateTraining, *, encoder: Encoder | None = None) -> dict[str, Any]:
    """Trains and calibrates, chooses the threshold of `found`, writes weights and report; returns the report.

    Args:
        settings: The run's settings.
        encoder: Computes the vectors. None: the default one.

    Raises:
        ValueError: A data file has a broken line, or the settings give too little data.
    """
    began = time.monotonic()
    asked = [a for source in sources(settings) for a in states_of(source, settings, encoder)]
    made = time.monotonic()
    head, held = fit_gate(settings, asked)
    chosen = choose(head, held, settings.refused)
    logger.info("trained on %d queries in %.0f s", len(asked), time.monotonic() - made)
    report = {
        "settings": {name: _to_json_value(value) for name, value in asdict(settings).items()},
        "queries": counts(asked),
        "threshold": head.threshold,
        "more_threshold": head.more_threshold,
        "found_threshold": head.found_threshold,
        **chosen,
        "seconds": {"states": round(made - began), "fitting": round(time.monotonic() - made)},
    }
    settings.out.mkdir(parents=True, exist_ok=True)
    head.save(settings.out / "dense_gate.safetensors")
    _write(settings.out, report)
    if settings.leave_one_out:
        left = leave_one_out(settings, asked, head, held)
        head.found_threshold = left.threshold(settings.refused)
        head.save(settings.out / "dense_gate.safetensors")
        report |= {
            "found_threshold": head.found_threshold,
            "leave_one_out": left.rows,
            "refused": left.refused(head.found_threshold),
        }
        _write(settings.out, report)
        (settings.out / "leave_one_out.md").write_text(table(left.rows), encoding="utf-8")
    return report


def counts(asked: Sequence[QueryStates]) -> dict[str, dict[str, int]]:
    """For each part of a source: original and restyled queries, those without relevant blocks, and passes."""
    found: dict[str, Counter[str]] = {}
    for a in asked:
        part = found.setdefault(a.part, Counter(asked=0, restyled=0, unanswerable=0, looks=0))
        part["asked" if a.style == ORIGINAL else "restyled"] += 1
        part["unanswerable"] += not a.relevant
        part["looks"] += 1 + len(a.later)
    return {name: dict(count) for name, count in found.items()}


def _write(out: Path, report: dict[str, Any]) -> None:
    (out / "dense_gate.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _to_json_value(value: Any) -> Any:
    """A setting as a JSON value; a path is reduced to the file name, since folders differ between machines."""
    if isinstance(value, Path):
        return value.name
    return [_to_json_value(v) for v in value] if isinstance(value, tuple) else value
