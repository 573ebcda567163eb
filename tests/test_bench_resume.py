"""What a second run of a measurement continues: rows, runs, and those that are committed."""

import json
import shutil
from pathlib import Path

import pytest

from compmem_research.bench.answers import KEY
from compmem_research.bench.run import CONFIG, ROWS, Run
from compmem_research.training.engine.resume import Rows

RESULTS = Path(__file__).parents[1] / "core" / "results"
ROW = {"fingerprint": "f", "id": "q1", "system": "s", "answer": "one\u2028line\x85"}


def test_a_line_that_was_cut_off_is_dropped_and_a_text_may_have_any_character(tmp_path):
    file = tmp_path / "new" / "rows.jsonl"
    Rows.open(file, KEY).add(ROW)
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"fingerprint":"f","id":"\xe2')
    kept = Rows.open(file, KEY)
    assert file.read_bytes() == whole
    assert kept.by_key == {("f", "q1", "s"): ROW}
    kept.add({**ROW, "id": "q2"})
    kept.add({**ROW, "id": "q1", "answer": "again"})
    assert [row["answer"] for row in Rows.open(file, KEY).of({("f", "q1", "s"), ("f", "none", "s")})] == ["again"]
    for line in (b"{\n", b"[]\n", b'{"id": "q3"}\n', b"\xff\n"):
        file.write_bytes(whole + line)
        with pytest.raises(ValueError, match=r"rows.jsonl:2: no row of this measurement"):
            Rows.open(file, KEY)


@pytest.mark.parametrize("name", sorted(file.name for file in RESULTS.glob("*.jsonl")))
def test_rows_that_are_committed_can_be_continued(name, tmp_path):
    file = Path(shutil.copy(RESULTS / name, tmp_path))
    assert len(Rows.open(file, KEY).by_key) == file.read_bytes().count(b"\n")
    assert file.read_bytes() == (RESULTS / name).read_bytes()


@pytest.mark.parametrize("name", sorted(file.parent.name for file in RESULTS.glob(f"*/{ROWS}")))
def test_runs_that_are_committed_can_be_continued(name, tmp_path):
    folder = Path(shutil.copytree(RESULTS / name, tmp_path / name))
    config = json.loads((folder / CONFIG).read_text())
    run = Run.open(folder, config | {"systems": config["systems"][:1]})
    assert len(run.rows.by_key) == (folder / ROWS).read_bytes().count(b"\n")
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        file.name: file.read_bytes() for file in (RESULTS / name).iterdir()
    }
    grown = Run.open(folder, config | {"systems": ["new"]})
    assert grown.config["systems"] == [*config["systems"], "new"]
    with pytest.raises(ValueError, match=r"config.json' was measured with questions=\d+, not 1; seed=0, not 9: choose"):
        Run.open(folder, config | {"questions": 1, "seed": 9})
