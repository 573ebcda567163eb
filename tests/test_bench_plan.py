"""The plan of large indexes: its arithmetic, its simulation, and the table in the docs."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compmem_research.bench.plan import DESIGNS, Assumptions, build, build_rows, measured, plan, rows

ROOT = Path(__file__).parent.parent
SCALE = {
    "chunks": 100_000,
    "corpus_megabytes": 100.0,
    "one_pass_ms": {"p50": 50.0, "p95": 80.0},
    "seconds_per_document": {"last tenth": 0.01},
    "bytes_per_character": {"vectors": 3.0, "text and lexical": 2.0},
}
ENCODE = {"query_ms": 10.0, "tokens_per_second": 8000.0, "threads": 2}
ASSUMED = Assumptions(characters_per_token=4.0, characters_per_page=1000.0, cores_per_machine=1)


def planned(chunks, design, **changes):
    known = replace(measured(SCALE, ENCODE, 20.0, ASSUMED), **changes)
    return plan(chunks, design, known, ASSUMED, np.random.default_rng(0), 4000)


def test_sizes_are_those_of_the_measured_folder_multiplied():
    one = planned(10**5, DESIGNS[0])
    assert one["disk_gigabytes"] == pytest.approx(0.5)
    assert planned(10**7, DESIGNS[0])["disk_gigabytes"] == pytest.approx(50)
    assert (one["shards"], planned(10**7, DESIGNS[0])["shards"]) == (1, 100)
    made = build(10**5, measured(SCALE, ENCODE, 20.0, ASSUMED), ASSUMED)
    assert made["cpu_hours"] == pytest.approx((25e6 / 4000 + 1000) / 3600, rel=0.01)


def test_one_shard_takes_the_measured_time_and_many_take_that_of_the_slowest():
    one, many = planned(10**5, DESIGNS[1]), planned(10**7, DESIGNS[1])
    assert one["step_ms"]["p50"] == pytest.approx(50, rel=0.05)
    assert many["step_ms"]["p50"] > one["step_ms"]["p99"] * 0.8
    assert planned(10**7, DESIGNS[1], spread=0.0)["step_ms"]["p50"] < many["step_ms"]["p50"]
    assert one == planned(10**5, DESIGNS[1])  # seeded


def test_each_design_names_what_it_meets_first():
    exact, quantised = planned(10**8, DESIGNS[2], scan_ms=50.0), planned(10**8, DESIGNS[3], scan_ms=50.0)
    assert exact["breaks"][0] == "a scan is over its budget"
    assert "a scan is over its budget" not in quantised["breaks"]
    assert quantised["memory_gigabytes"] < exact["memory_gigabytes"]
    assert planned(10**5, DESIGNS[0])["breaks"] == []
    assert "a step takes over a second" in planned(10**7, DESIGNS[0])["breaks"]


def test_the_tables_of_the_docs_are_the_result():
    text = (ROOT / "docs" / "scale.md").read_text("utf-8")
    result = json.loads((ROOT / "core" / "results" / "plan.json").read_text("utf-8"))
    for line in [*rows(result), *build_rows(result)]:
        assert f"| {' | '.join(line)} |" in text
