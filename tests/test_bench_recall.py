import json
from itertools import pairwise

from typer.testing import CliRunner

from compmem_research.bench.commands import app
from tests.test_tasks import PARAGRAPHS, QUESTION, write

ASKED = {**QUESTION, "question": "Who insures the building that Acme rents?", "paragraphs": PARAGRAPHS}


def test_the_command_prints_every_system_side_by_side(tmp_path):
    data = write(tmp_path / "own.jsonl", ASKED)
    done = CliRunner().invoke(app, ["recall", "--data", str(data), "--json", "--out", str(tmp_path / "r" / "own.json")])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout[done.stdout.index("{") :])
    assert set(printed["systems"]) == {"dense", "bm25", "fused", "one-shot gate", "loop"}
    for row in printed["systems"].values():
        assert set(row) >= {"recall@2", "recall@5", "recall@10", "seconds_per_question"}
        assert row["recall@5"] == 100.0
    assert printed["systems"]["loop"]["recall@2"] == 100.0
    assert printed["losses"] == {"proposed_at_first": 100.0, "proposed_ever": 100.0, "read": 100.0}
    assert printed["cutoffs"][0]["kept"] == 100.0
    assert all(a["kept"] >= b["kept"] and a["empty"] <= b["empty"] for a, b in pairwise(printed["cutoffs"]))
    saved = json.loads((tmp_path / "r" / "own.json").read_text())
    assert saved["systems"] == printed["systems"]
    assert str(tmp_path) not in saved["command"]
