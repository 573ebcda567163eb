"""The speed measurement: every system on a tiny backbone, resuming, and the table."""

import json
import time

import pytest

from compmem_research.bench import speed, speed_cells


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(speed, "LENGTHS", {"1K": 1000, "2K": 2000})
    rules = speed.SpeedSettings(
        chunk_tokens=128, memory_tokens=4, prompt_tokens=8, answer_tokens=2, recalled=2, candidates=4, timed_steps=6
    )
    monkeypatch.setattr(speed, "SpeedSettings", lambda: rules)
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
    assert (loop["steps"], loop["timed_steps"], loop["extrapolated"]) == (16, 6, True)
    ours = next(r for r in result["rows"] if r["system"] == "CompMem, one block a step" and r["length"] == "2K")
    assert ours["disk_bytes"] > 16 * 32 * 2 * 16 * 2
    assert ours["warm_times_faster"] == pytest.approx(loop["warm_seconds"] / ours["warm_seconds"])
    assert set(result["growth"]) >= {"MemAgent's loop", "CompMem, one block a step"}
    speed.main(given)
    assert json.loads(out.read_text()) == result
    assert "(extrapolated)" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"measured with dtype='float32', not 'bfloat16'.*--fresh"):
        speed.main([*given, "--dtype", "bfloat16"])
    speed.main([*given, "--fresh", "--minutes", "0"])
    assert list(json.loads(out.read_text())["cells"]) == ["rates"]


def test_an_unknown_length_is_refused(tmp_path):
    with pytest.raises(SystemExit, match="'3G': the lengths are 7K"):
        speed.main(["--lengths", "3G", "--out", str(tmp_path / "s.json")])


def test_a_cell_that_does_not_fit_is_told_and_the_others_go_on(small):
    def fails():
        raise MemoryError("tried batches of 2, 1")

    models = speed.SpeedModels(
        speed.random_backbone("tiny-8x256", device="cpu", dtype="float32", ratio=4), speed.SpeedSettings()
    )
    cells, kept = {}, []
    planned = [speed.Planned("full 1K", fails, 1000), speed.Planned("rates", dict)]
    speed.run(models, planned, cells, lambda: kept.append(len(cells)), until=float("inf"))
    assert cells["full 1K"]["failed"] == "MemoryError: tried batches of 2, 1"
    assert kept == [1, 2]


def test_no_cell_begins_that_may_end_too_late(small):
    cells = {"rates": {"took": 30.0}, "compmem 1K": {"took": 10.0}, "full 1K": {"took": 5.0}}
    tokens = {"rates": 0, "batch": 0, "compmem 1K": 1000, "full 1K": 1000, "compmem 2K": 2000, "full 3K": 3000}
    planned = [speed.Planned(name, dict, count) for name, count in tokens.items()]
    assert [speed._expected(one, planned, cells) for one in planned] == [30, 30, 30, 30, 20, 45]
    models = speed.SpeedModels(
        speed.random_backbone("tiny-8x256", device="cpu", dtype="float32", ratio=4), speed.SpeedSettings()
    )
    speed.run(models, planned, cells, lambda: None, until=time.monotonic() + 25)
    assert "compmem 2K" in cells
    assert "full 3K" not in cells


def test_works_that_take_turns_are_timed_each_by_itself():
    done, clock = [], speed_cells.Clock(speed.torch.device("cpu"), 0)
    works = {"short": lambda: done.append("short"), "long": lambda: (done.append("long"), time.sleep(0.02))}
    timed = clock.in_turns(works, rounds=3)
    assert done == ["short", "long"] * 3
    assert timed["long"]["seconds"] > 0.02 > timed["short"]["seconds"]
    assert timed["long"]["slowest"] >= timed["long"]["seconds"]
