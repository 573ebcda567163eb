"""The committed results agree with the rows and settings that are committed with them."""

import json
from collections import Counter
from pathlib import Path

import pytest

from compmem_research.bench.fusion_report import summary

RESULTS = Path(__file__).parents[1] / "core" / "results"
FUSION = {path.stem: found for path in RESULTS.glob("*.json") if "fusion" in (found := json.loads(path.read_text()))}


@pytest.mark.parametrize("name", [name for name in sorted(FUSION) if (RESULTS / f"{name}.jsonl").exists()])
def test_rows_give_the_figures_beside_them(name):
    made, rows = FUSION[name], list(map(json.loads, (RESULTS / f"{name}.jsonl").read_text().splitlines()))
    systems, answered = {row["system"] for row in rows}, Counter(row["id"] for row in rows)
    complete = [row for row in rows if answered[row["id"]] == len(systems)]
    own = {row["model"]: made["settings"]["pruning"][0] for row in complete if row["pruning"] == "trained"}
    assert summary(complete, made["models"], own) == made["fusion"]
