"""What a second run of a measurement continues: rows, runs, and those that are committed."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from compmem.backbone import AdapterConfig
from compmem_research.bench.answers import KEY
from compmem_research.bench.quality import Sweep
from compmem_research.bench.run import CONFIG, ROWS, Run
from compmem_research.digests import backbone_digest
from compmem_research.resume import Rows

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


def test_a_run_goes_on_only_with_the_files_and_weights_it_began_with(tmp_path):
    Run.open(tmp_path, {"seed": 0}).use({"a.jsonl": "1", "backbone": "b"})
    again = Run.open(tmp_path, {"seed": 0})
    again.use({"a.jsonl": "1", "other.jsonl": "2"})
    assert again.files == {"a.jsonl": "1", "backbone": "b", "other.jsonl": "2"}
    for changed in ({"a.jsonl": "3"}, {"backbone": "c"}):
        with pytest.raises(ValueError, match=r"was measured with \S+='[1b]', not '[3c]': choose another place"):
            again.use(changed)


def test_a_sweep_with_another_gate_is_another_run(tmp_path, monkeypatch):
    settings = Sweep(data=tmp_path, out=tmp_path, cells=(), systems=())
    before = settings.config()
    monkeypatch.setattr("compmem_research.bench.quality.gate_digest", lambda: "another")
    assert settings.config() != before


def test_what_reads_and_the_gate_are_part_of_the_digest_of_a_backbone(tiny_backbone):
    def made(**changes):
        backbone = tiny_backbone()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            for role in ("reasoner", "gate"):
                backbone.add_adapter(role, AdapterConfig(rank=2))
            backbone.add_gate()
        with torch.no_grad():
            for part, value in changes.items():
                for parameter in backbone.parameters(part).values() if part != "threshold" else ():
                    parameter.add_(value)
        backbone.threshold = changes.get("threshold", 0.5)
        return backbone_digest(backbone)

    assert made() == made()
    assert len({made(), made(reasoner=0.1), made(gate=0.1), made(threshold=0.4)}) == 4
