"""The speed measurement: every system on a tiny backbone, resuming, and the table."""

import json
import time

import pytest

from compmem.bench import speed


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "LENGTHS", {"1K": 1000, "2K": 2000})
    rules = speed.Rules(
        chunk_tokens=128, memory_tokens=4, prompt_tokens=8, answer_tokens=2, recalled=2, candidates=4, timed_steps=3
    )
    monkeypatch.setattr(speed, "Rules", lambda: rules)
    shape = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 300,
    }  # fmt: skip
    monkeypatch.setitem(speed.SHAPES, "tiny-8x256", shape)


def test_every_system_is_measured_and_a_finished_cell_is_not_measured_again(tmp_path, small, capsys):
    out = tmp_path / "s.json"
    given = ["--device", "cpu", "--lengths", "1K,2K", "--full-until", "1000", "--out", str(out)]
    speed.main([*given, "--minutes", "0"])
    left = json.loads(out.read_text())["left"]
    assert "loop memagent" in left
    speed.main(given)
    result = json.loads(out.read_text())
    assert result["left"] == []
    assert len(result["rows"]) == 11
    loop = next(r for r in result["rows"] if r["system"] == "MemAgent's loop" and r["length"] == "2K")
    assert (loop["steps"], loop["timed_steps"], loop["extrapolated"]) == (16, 3, True)
    ours = next(r for r in result["rows"] if r["system"] == "CompMem, one block a step" and r["length"] == "2K")
    assert ours["disk_bytes"] > 16 * 32 * 2 * 16 * 2
    assert ours["warm_times_faster"] == pytest.approx(loop["warm_seconds"] / ours["warm_seconds"])
    assert set(result["growth"]) >= {"MemAgent's loop", "CompMem, one block a step"}
    before = {file: file.read_text() for file in (tmp_path / "s").iterdir()}
    speed.main(given)
    assert before == {file: file.read_text() for file in (tmp_path / "s").iterdir()}
    assert "(extrapolated)" in capsys.readouterr().out


def test_an_unknown_length_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="'3G': the lengths are 7K"):
        speed.main(["--lengths", "3G", "--out", str(tmp_path / "s.json")])


def test_a_cell_that_does_not_fit_is_told_and_the_others_go_on(tmp_path, small):
    def fails():
        raise MemoryError("tried batches of 2, 1")

    rig = speed.Rig(speed.random_backbone("tiny-8x256", device="cpu", dtype="float32", ratio=4), speed.Rules())
    assert speed.run(rig, [("full 1K", fails), ("rates", dict)], tmp_path, 10) == []
    assert json.loads((tmp_path / "full-1K.json").read_text()) == {"failed": "MemoryError: tried batches of 2, 1"}
    assert (tmp_path / "rates.json").exists()


def test_works_that_take_turns_are_timed_each_by_itself():
    done, clock = [], speed.Clock(speed.torch.device("cpu"), 0)
    works = {"short": lambda: done.append("short"), "long": lambda: (done.append("long"), time.sleep(0.02))}
    timed = clock.in_turns(works, rounds=3)
    assert done == ["short", "long"] * 3
    assert timed["long"]["seconds"] > 0.02 > timed["short"]["seconds"]
    assert timed["long"]["slowest"] >= timed["long"]["seconds"]
