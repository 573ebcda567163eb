"""The training loop of every stage: interrupted and split runs give the same curve, and errors are clear."""

import os
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from compmem.errors import CheckpointError
from compmem_research.training.data.components import Component
from compmem_research.training.data.mixture import MixtureSettings
from compmem_research.training.engine.device import matmul_ceiling
from compmem_research.training.engine.log import read_log
from compmem_research.training.engine.settings import decisive_settings, read_settings
from compmem_research.training.engine.trainer import RunSettings
from compmem_research.training.stages import run_stage
from compmem_research.training.warmup import WarmupTraining
from tests.training import Toy, run

ROOT = Path(__file__).parents[1]


def curve(out):
    return [line["loss"] for line in read_log(out) if "loss" in line]


def weights(out):
    return {n: t for n, t in load_file(out / "checkpoint.safetensors").items() if n.startswith("weights/")}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


@pytest.fixture(autouse=True)
def no_plots(whole, monkeypatch):
    """The first run draws its plot, and no other."""
    monkeypatch.setattr("compmem_research.training.engine.trainer.plot", lambda folder: None)


# --- one curve


def test_the_same_seed_gives_the_same_curve(whole, tmp_path):
    run(tmp_path)
    assert curve(tmp_path) == curve(whole)
    assert len(curve(whole)) == 6
    assert curve(whole)[-1] != curve(whole)[0]


@pytest.mark.parametrize("killed_at", [1, 5])
def test_a_run_that_was_killed_goes_on_with_the_same_curve(whole, tmp_path, killed_at):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Toy(killed_at=killed_at))
    stage = Toy()
    report = run(tmp_path, stage)
    assert curve(tmp_path) == curve(whole)
    assert stage.state == {"steps": 6.0}
    assert report["steps"] == 6
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(tmp_path)[name], tensor), name


def test_a_run_that_was_killed_while_writing_goes_on_from_the_checkpoint_before(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Toy(killed_at=5))
    (tmp_path / ".checkpoint.safetensors.part").write_bytes(b"half of")
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    run(tmp_path)
    assert curve(tmp_path) == curve(whole)


@pytest.mark.parametrize("cut", [{"batch": 1, "accumulate": 8}, {"batch": 2, "accumulate": 4}, {"workers": 1}])
def test_micro_batches_and_workers_change_nothing(whole, tmp_path, cut):
    run(tmp_path, **cut)
    assert curve(tmp_path) == pytest.approx(curve(whole), abs=2e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, atol=2e-4, rtol=0)


def test_the_parts_are_means_over_the_whole_step(whole):
    first = next(line for line in read_log(whole) if "loss" in line)
    stage = Toy()
    batch = stage.batch(0, range(8))
    with torch.no_grad():
        sums = stage.losses(batch)
    means = {name: float(sums[name]) / batch.counts[name] for name in sums}
    assert first["loss_even"] == pytest.approx(means["even"], abs=1e-5)
    assert first["exact_even"] == pytest.approx(means["exact_even"], abs=1e-5)
    assert first["loss"] == pytest.approx(means["even"] + 0.5 * means["odd"], abs=1e-5)


LAUNCHED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.training import Toy, run
run(Path(sys.argv[1]), Toy(), batch=2, accumulate=2)
"""


def launched(out, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {**os.environ, "PYTHONPATH": f"{ROOT / 'core'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    place |= {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
    place["MASTER_PORT"] = str(port)
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", LAUNCHED, str(out)],
            env={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT, stderr=subprocess.PIPE,
        )
        for rank in range(processes)
    ]  # fmt: skip
    told = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), told


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_with_twice_the_accumulation(whole, tmp_path):
    launched(tmp_path, 2)
    assert read_log(tmp_path)[0]["processes"] == 2
    assert curve(tmp_path) == pytest.approx(curve(whole), abs=2e-5)
    for name, tensor in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path)[name], tensor, atol=2e-4, rtol=0)


def test_bfloat16_trains_float32_weights(whole, tmp_path):
    run(tmp_path, bf16=True)
    assert curve(tmp_path) == pytest.approx(curve(whole), abs=0.05)
    assert curve(tmp_path) != curve(whole)
    assert {t.dtype for t in weights(tmp_path).values()} == {torch.float32}


# --- files of a run


def test_a_run_ends_by_the_clock_with_a_checkpoint_and_the_rate_down(tmp_path):
    report = run(tmp_path, steps=100_000, minutes=0.03, checkpoint_every=0, final_rate=0.1, learning_rate=1e-3)
    told = [line for line in read_log(tmp_path) if "loss" in line]
    assert 3 < report["steps"] < 100_000
    assert told[-1]["learning_rate"] < 3e-4 < told[2]["learning_rate"]
    assert (tmp_path / "checkpoint.safetensors").exists()
    assert (tmp_path / "backbone" / "compmem.json").exists()


def test_the_log_has_throughput_and_the_plot_is_drawn_or_its_lack_told(whole, tmp_path, monkeypatch, caplog):
    line = read_log(whole)[1]
    assert line["tokens_per_second"] > 0
    assert 0 < line["ceiling_share"] < 1
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with caplog.at_level("INFO"):
        run(tmp_path)
    assert "no plot" in caplog.text
    assert not (tmp_path / "log.png").exists()
    pytest.importorskip("matplotlib")
    assert (whole / "log.png").stat().st_size > 1000


def test_the_ceiling_is_that_of_this_machine():
    assert 1e9 < matmul_ceiling(torch.device("cpu"), bf16=False, seconds=0.05) < 1e14


# --- errors


def test_a_checkpoint_of_another_shape_or_stage_is_refused_and_stays(whole, tmp_path):
    kept = (whole / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(kept)
    with pytest.raises(
        CheckpointError, match=r"'embed_tokens\.weight' in .* has the shape \(259, 32\), not \(259, 48\)"
    ):
        run(tmp_path, Toy(hidden=48))
    with pytest.raises(CheckpointError, match="is of the stage 'toy', not 'other'"):
        run(tmp_path, Toy(name="other"))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == kept
    (tmp_path / "checkpoint.safetensors").write_bytes(kept[:100])
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        run(tmp_path)
    save_file({"x": torch.ones(1)}, tmp_path / "checkpoint.safetensors")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 1}, "seed=0, not 1"),
        ({"learning_rate": 2e-3}, "learning_rate=0.001, not 0.002"),
        ({"batch": 4}, "examples=8, not 4"),
        ({"betas": (0.9, 0.99)}, r"betas=\[0.9, 0.95\], not \[0.9, 0.99\]"),
        ({"provenance": {"start": "b"}}, "start=None, not 'b'"),
    ],
)
def test_a_run_is_not_continued_with_what_changes_its_weights(whole, tmp_path, changes, message):
    kept = (whole / "checkpoint.safetensors").read_bytes()
    (tmp_path / "checkpoint.safetensors").write_bytes(kept)
    with pytest.raises(CheckpointError, match=f"was trained with {message}: use another folder"):
        run(tmp_path, **changes)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == kept


def test_a_run_is_continued_for_longer_and_elsewhere(whole, tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes((whole / "checkpoint.safetensors").read_bytes())
    cut = {"batch": 4, "accumulate": 2, "checkpointing": True, "checkpoint_every": 0, "log_every": 2, "workers": 1}
    assert run(tmp_path, steps=8, minutes=60.0, **cut)["steps"] == 8


def test_the_settings_of_a_stage_decide_but_not_where_its_files_are(tmp_path):
    def made(seed=0, file="set.jsonl", **changes):
        mixture = MixtureSettings(components=(Component(kind="multihop", file=tmp_path / file),), **changes)
        settings = WarmupTraining(start=tmp_path, run=RunSettings(out=tmp_path, seed=seed), mixture=mixture)
        return decisive_settings(settings, "digest")

    assert made() == made(seed=1, file="elsewhere/set.jsonl")
    assert made()["start"] == "digest"
    assert made() != made(file="other.jsonl")
    assert made() != made(distill=0.5)


def test_without_space_the_last_checkpoint_stays_and_the_run_goes_on_later(whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Toy(killed_at=3))
    kept = (tmp_path / "checkpoint.safetensors").read_bytes()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(kept) // 2, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not be written.*the last one is as it was"):
            run(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == kept
    assert not list(tmp_path.glob(".*.part"))
    run(tmp_path)
    assert curve(tmp_path) == curve(whole)


def test_a_gradient_that_is_not_finite_is_left_out_and_ends_the_run_if_it_stays(tmp_path, caplog):
    with pytest.raises(FloatingPointError, match="the last 10 gradients were not finite"):
        run(tmp_path, Toy(scale=float("inf")), steps=50)
    assert "step 0 is left out" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps = 3\n", "the setting 'out' is missing"),
        ('out = "o"\nsteps = "many"\n', "steps='many' must be of the type int"),
        ('out = "o"\nspeed = 3\n', "unknown setting 'speed'"),
        ("= nonsense", "not TOML"),
        ('out = "o"\nbatch = 0\n', "batch=0 must be at least 1"),
        ('out = "o"\nminutes = -1\n', "minutes=-1.0 must be above 0"),
        ('out = "o"\nminutes = true\n', "minutes=True must be of the type float"),
        ('out = "o"\nbetas = [0.9]\n', "betas="),
        ('out = "o"\nbetas = 0.9\n', "betas=0.9 must be a list"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tmp_path, text, message):
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_settings(file, RunSettings)


def test_an_unknown_key_in_a_table_names_the_table(tmp_path):
    file = tmp_path / "lm.toml"
    file.write_text('data = "d"\n[run]\nout = "o"\nspeed = 1\n[mixture]\n[[mixture.components]]\nkind = "random"\n')
    with pytest.raises(ValueError, match=r"in \[run\]: unknown setting 'speed'"):
        run_stage("lm", file)
    for kind in ("'randon'", "['random']"):
        file.write_text(f'data = "d"\n[run]\nout = "o"\n[mixture]\n[[mixture.components]]\nkind = {kind}\n')
        with pytest.raises(ValueError, match=re.escape(f"kind={kind} must be one of 'text', 'random'")):
            run_stage("lm", file)
    with pytest.raises(ValueError, match="no stage is called 'gat'"):
        run_stage("gat", file)
    with pytest.raises(ValueError, match="cannot be read"):
        run_stage("lm", tmp_path / "none.toml")
