import json
import shlex

import pytest

from compmem_research.bench.machine import command
from compmem_research.bench.report import report

MACHINE = {"cpu": "x", "threads": 2, "cpu_features": ["avx2"], "gpu": None, "python": "3.11", "torch": "2"}
RUN = {
    "command": "compmem bench recall", "machine": MACHINE, "data": "own.jsonl", "questions": 3, "passages": 9,
    "systems": {"loop": {"recall@2": 50.0, "recall@5": 75.0, "recall@10": 80.0, "recall@5 95%": [70.0, 79.9],
                         "seconds_per_question": 0.1234}},
    "losses": {"proposed_at_first": 60.0, "proposed_ever": 90.0, "read": 70.0},
}  # fmt: skip


def test_every_figure_on_the_page_comes_from_a_file(tmp_path):
    (tmp_path / "recall_own.json").write_text(json.dumps(RUN))
    flat = {"command": "compmem bench encode", "machine": MACHINE, "ratio": 3.5, "cosine": {"mean": 0.999}}
    (tmp_path / "encode.json").write_text(json.dumps(flat))
    page = report(tmp_path)
    assert "| loop | 50.0 | 75.0 | 80.0 | 70.0 to 79.9 | 0.123 |" in page
    assert "| ratio | 3.5 |" in page
    assert "mean: 0.999" in page
    assert "`compmem bench recall`" in page


def test_what_a_trained_backbone_gets_right_is_told_with_its_interval(tmp_path):
    line = {"task": "world-2hop", "length": 7000, "system": "compmem", "questions": 40, "accuracy": 12.5,
            "interval": [2.5, 22.5], "blocks": 136.0, "blocks_read": 7.8, "seconds_compress": 0.5,
            "seconds_answer": 0.25, "malformed": 1}  # fmt: skip
    run = {"settings": {"chunk_tokens": 96, "max_steps": 12}, "backbone": {"parameters": 2001217, "ratio": 4},
           "device": "cpu", "torch": "2", "lines": [line]}  # fmt: skip
    (tmp_path / "embedded.json").write_text(json.dumps(run))
    page = report(tmp_path)
    assert "2,001,217 parameters, ratio 4, chunks of at most 96 tokens, at most 12 steps" in page
    assert "| world-2hop | 7000 | compmem | 40 | 12.5 [2, 22] | 7.8 of 136.0 | 0.50 / 0.25 | 1 |" in page
    assert "`compmem train evaluate`" in page


def test_an_empty_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match="no results"):
        report(tmp_path)


def test_a_command_can_be_given_to_a_shell_again(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/compmem", "bench", "serve", "--replicas", "", "--index", "/a/my index"])
    assert shlex.split(command()) == ["compmem", "bench", "serve", "--replicas", "", "--index", "my index"]
