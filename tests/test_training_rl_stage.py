"""Stage 2 in the trainer: a toy model learns to detect a mark in compressed chunks from rewards alone."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType

from compmem.backbone import AdapterConfig, Backbone, MemoryConfig
from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem.schema import Chunk, Document
from compmem_research.tasks.sample import Sample, Span
from compmem_research.training.data.examples import Example, Rows, row_losses
from compmem_research.training.data.traces import structured
from compmem_research.training.engine.trainer import RunSettings, Trainer
from compmem_research.training.from_scratch import REPLY_TAGS, DecoderConfig, train_tokenizer, untrained_backbone
from compmem_research.training.rl import RLStage, RLTraining
from compmem_research.training.rollouts.objective import Objective
from compmem_research.training.rollouts.questions import Context
from compmem_research.training.rollouts.rollouts import RolloutSettings, check_not_sharded
from compmem_research.training.stages import run_stage
from tests.training import hurry

PROMPTS = LatentPrompts(
    nothing="n", update="{question}{memory}", overwrite="{question}{memory}!", answer="{question}{memory}=",
    from_blocks="{question}=",
)  # fmt: skip
MARK = " mark"


def make_toy(seed=0):
    words = (*REPLY_TAGS, "yes", "no", "continue", "end", "note", MARK, " b", " c")
    tokenizer = train_tokenizer(["a"], 261 + len(words), words=words)
    shape = DecoderConfig(hidden=32, layers=2, heads=2, kv_heads=1, head_dim=16, inner=64, context=256)
    backbone = untrained_backbone(shape, tokenizer, seed=seed, device="cpu")
    with torch.no_grad():
        for parameter in backbone.decoder.parameters():
            # With small widths, larger initial weights than usual are needed to detect anything.
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    backbone.add_memory(MemoryConfig(ratio=4, window=16))
    return backbone


def context(backbone, number):
    """One chunk of eight tokens; every second one is of marks."""
    rng = np.random.default_rng(number)
    words = [[" b", " c"][i] for i in rng.integers(2, size=8)]
    marked = bool(number % 2)
    if marked:
        words = [MARK] * 8
    text = "".join(words)
    at = text.find(MARK)
    spans = (Span(document="d", start=at, end=at + len(MARK)),) if marked else ()
    document = Document(id="d", text=text)
    sample = Sample(id=str(number), task="toy", question="q", answers=("note",), documents=(document,), evidence=spans)
    return Context.of(sample, [Chunk(text=text, document_id="d")], backbone)


def warm_up(backbone, steps=60):
    """Train it on the format of a reply and on naming what it reads, but not on when to say yes."""
    prompts, rng = StepPrompts(backbone, PROMPTS), np.random.default_rng(0)
    optimizer = torch.optim.AdamW(backbone.decoder.parameters(), 1e-2)
    for step in range(steps):
        rows = []
        for number in range(16):
            check = bool(rng.integers(2))
            seen = context(backbone, 10_000 + 16 * step + number)
            reply = structured(check=check, update=MARK if seen.sample.evidence else " b", end=True)
            ids = [*prompts.step("q", ""), *backbone.encode_reply(reply)]
            rows.append(
                Example(part="step", blocks=(seen.ids[0],), ids=ids, spans=((len(prompts.step("q", "")), len(ids)),))
            )
        batch = Rows.of(rows, 4)
        optimizer.zero_grad()
        (row_losses(backbone, batch)["step"] / batch.counts["step"]).backward()
        optimizer.step()
    return backbone


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture(scope="module")
def warm():
    """Weights that write well-formed replies with a random check."""
    backbone = warm_up(make_toy())
    return {name: p.detach().clone() for name, p in backbone.decoder.named_parameters()}


def toy_of(warm):
    backbone = make_toy()
    with torch.no_grad():
        for name, parameter in backbone.decoder.named_parameters():
            parameter.copy_(warm[name])
    return backbone


def settings(out, **changes):
    run = {"steps": 3, "batch": 4, "learning_rate": 3e-3, "warmup": 1, "log_every": 1, "measure_every": 0}
    run |= {"device": "cpu", "checkpoint_every": 0, **changes.pop("run", {})}
    defaults = {
        "start": out, "run": RunSettings(out=out, **run), "rewards": ("update", "format"), "train": ("base",),
        "rollouts": RolloutSettings(group=4, memory_tokens=2, overhead=8, answer_tokens=2), "prompts": PROMPTS,
        "alpha": 0.3, "beta": 0.0, "held": 4,
    }  # fmt: skip
    return RLTraining(**defaults | changes)


def train(backbone, given):
    stage = RLStage(given, backbone, lambda number, held: context(backbone, number + 7 * held))
    return Trainer(given.run).run(stage)


def log_of(out, *names):
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [[line[name] for name in names] for line in lines if set(names) <= set(line)]


def test_it_learns_to_see_the_mark_by_reward_alone(warm, tmp_path):
    given = settings(
        tmp_path, run={"steps": 44, "batch": 16}, rollouts=replace(settings(tmp_path).rollouts, group=4), held=32
    )
    figures = train(toy_of(warm), given)
    rewards = [reward for [reward] in log_of(tmp_path, "reward_update")]
    assert abs(np.mean(rewards[:5])) < 0.3
    assert np.mean(rewards[-10:]) > 0.6
    assert figures["held_reward_update"] > 0.8


CURVE = ("loss", "reward", "outcome", "reward_update", "clipped", "gradient_norm")


def test_the_same_seed_gives_the_same_curve_and_a_killed_run_goes_on_in_it(warm, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(toy_of(warm), settings(whole))
    run = {"checkpoint_every": 1}
    with pytest.raises(KeyboardInterrupt):
        interrupted(toy_of(warm), settings(parts, run=run), after=2)
    train(toy_of(warm), settings(parts, run=run))
    assert log_of(parts, *CURVE) == log_of(whole, *CURVE)
    assert len(log_of(whole, *CURVE)) == 3


def interrupted(backbone, given, after):
    class Killed(RLStage):
        def batch(self, step, rows):
            if step == after:
                raise KeyboardInterrupt
            return super().batch(step, rows)

    Trainer(given.run).run(Killed(given, backbone, lambda number, held: context(backbone, number + 7 * held)))


@pytest.mark.parametrize("algorithm", ["gspo", "dapo"])
def test_accumulated_questions_weigh_as_those_of_one_batch(warm, tmp_path, algorithm):
    losses = []
    for batch, accumulate in ((4, 1), (1, 4)):
        out = tmp_path / str(batch)
        run = {"steps": 1, "batch": batch, "accumulate": accumulate}
        train(toy_of(warm), settings(out, run=run, objective=Objective(algorithm=algorithm), beta=0.1))
        losses.append(log_of(out, *CURVE)[0])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3, abs=1e-5)


def test_answers_without_steps_are_rewarded_through_the_memory_of_all_chunks(warm, tmp_path, monkeypatch):
    backbone = toy_of(warm)
    backbone.steps_trained = False
    before = weights(backbone, "memory")
    answers = RolloutSettings(system="answer", group=8, answer_tokens=2)
    given = settings(tmp_path, rewards=("outcome", "format"), outcome="f1", rollouts=answers, run={"batch": 8})
    figures = train(backbone, given)
    assert 0 <= figures["held_answer"] <= 1
    assert figures["held_blocks_read"] == 0
    assert any(not torch.equal(before[name], p) for name, p in backbone.parameters("memory").items())
    assert not backbone.steps_trained, "it was not trained for steps"
    stage = RLStage(given, backbone, lambda number, held: context(backbone, number))
    monkeypatch.setattr(backbone, "generate", lambda prompts, *_, **__: [backbone.encode("notenote")] * len(prompts))
    assert stage.measure(0)["held_answer"] == 0.0
    monkeypatch.setattr(backbone, "generate", lambda prompts, *_, **__: [backbone.encode("note b")] * len(prompts))
    assert stage.measure(0)["held_answer"] == pytest.approx(2 / 3), "the measurement has the reward that is trained"
    with pytest.raises(ValueError, match=r"has no steps: rewards has \['exit', 'update'\]"):
        settings(tmp_path, rewards=("outcome", "update", "exit"), rollouts=answers)


def weights(backbone, part):
    return {name: p.detach().clone() for name, p in backbone.parameters(part).items()}


@pytest.mark.parametrize("frozen", [False, True])
def test_the_compressor_is_trained_unless_it_is_frozen(warm, tmp_path, frozen):
    backbone = toy_of(warm)
    backbone.add_adapter("reasoner", AdapterConfig(rank=4))
    before = {part: weights(backbone, part) for part in ("base", "memory", "reasoner")}
    train(backbone, settings(tmp_path, train=("reasoner",), freeze_compressor=frozen, run={"steps": 2}))
    changed = {
        part: any(not torch.equal(p, now[name]) for name, p in before[part].items())
        for part in before
        for now in [weights(backbone, part)]
    }
    assert changed == {"base": False, "memory": not frozen, "reasoner": True}


def test_the_divergence_grows_from_nothing(warm, tmp_path):
    train(toy_of(warm), settings(tmp_path, beta=1e-3))
    [[first], *_, [last]] = log_of(tmp_path, "loss_kl")
    assert first == pytest.approx(0, abs=1e-6)
    assert last > 1e-4


def test_more_updates_on_the_rollouts_of_one_policy(warm, tmp_path):
    policies = []

    class RecordingContext(RLStage):
        def _roll_out(self, batches):
            policies.append(len(batches))
            return super()._roll_out(batches)

    given = settings(tmp_path, updates=2, run={"steps": 4, "learning_rate": 2e-2})
    backbone = toy_of(warm)
    Trainer(given.run).run(RecordingContext(given, backbone, lambda number, held: context(backbone, number)))
    assert policies == [2, 2]
    clipped = [share for [share] in log_of(tmp_path, "clipped")]
    assert clipped[0] == clipped[2] == 0, "the first update of a round is on policy"
    assert max(clipped[1], clipped[3]) > 0


@pytest.mark.parametrize("system", ["gru-mem", "lychee"])
def test_adapters_train_in_float32_on_frozen_bfloat16(warm, tmp_path, system):
    start = toy_of(warm)
    for role in ("reasoner", "memory"):
        start.add_adapter(role, AdapterConfig(rank=2))
    start.save(tmp_path / "start")
    backbone = Backbone.load(tmp_path / "start", device="cpu", dtype="bfloat16")
    rollouts = RolloutSettings(system=system, group=4, memory_tokens=3, overhead=8, answer_tokens=2)
    run = {"steps": 2, "bf16": True, "checkpointing": True}
    changes = {"rollouts": rollouts, "rewards": ("outcome", "format"), "scale": True, "beta": 0.01, "piece_tokens": 200}
    train(backbone, settings(tmp_path, train=("reasoner",), run=run, **changes))
    assert {p.dtype for p in backbone.parameters("base").values()} == {torch.bfloat16}
    assert {p.dtype for part in ("reasoner", "memory") for p in backbone.parameters(part).values()} == {torch.float32}
    assert all(np.isfinite(loss) for [loss] in log_of(tmp_path, "loss"))


LAUNCHED = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from tests.test_training_rl_stage import make_toy, settings, train, warm_up
out, batch = Path(sys.argv[1]), int(sys.argv[2])
run = {"steps": 4, "batch": 2, "accumulate": batch}
train(warm_up(make_toy(), 20), settings(out, beta=0.01, updates=2, run=run))
"""


@pytest.mark.slow
def test_two_processes_give_the_curve_of_one_with_twice_the_accumulation(tmp_path):
    root = Path(__file__).parents[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    curves = []
    for processes in (1, 2):
        out = tmp_path / str(processes)
        place = {**os.environ, "PYTHONPATH": f"{root / 'core'}:{root}", "OMP_NUM_THREADS": "1"}
        place |= {"ACCELERATE_USE_CPU": "true", "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1"}
        place |= {"MASTER_PORT": str(port)}
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", LAUNCHED, str(out), str(3 - processes)],
                env={**place, "RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=root, stderr=subprocess.PIPE,
            )
            for rank in range(processes)
        ]  # fmt: skip
        told = [rank.communicate(timeout=300)[1].decode() for rank in ranks]
        assert all(rank.returncode == 0 for rank in ranks), told
        curves.append(log_of(out, "loss", "loss_kl", "reward", "clipped"))
    assert len(curves[0]) == 4
    assert np.allclose(curves[0], curves[1], atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": ("luck",)}, "luck"),
        ({"rewards": ()}, "nothing to learn from"),
        ({"alpha": 1.5}, "alpha"),
        ({"updates": 3, "run": {"checkpoint_every": 4}}, "multiple of updates=3"),
        ({"run": {"workers": 1}}, "workers=0"),
        ({"rollouts": RolloutSettings(group=1)}, "at least 2"),
        ({"freeze_compressor": True}, "train a reasoner's adapter"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_sharded_weights_are_refused(monkeypatch):
    class Sharded:
        distributed_type = DistributedType.FSDP

    monkeypatch.setattr("accelerate.state.AcceleratorState", Sharded)
    with pytest.raises(ValueError, match="without FSDP"):
        check_not_sharded()


def test_nothing_to_train_is_an_error(warm, tmp_path):
    with pytest.raises(ValueError, match="nothing to train"):
        RLStage(settings(tmp_path, train=(), freeze_compressor=True), toy_of(warm), lambda number, held: None)


def test_a_config_file_runs_it_on_made_up_worlds(warm, tmp_path):
    toy_of(warm).save(tmp_path / "start")
    PROMPTS.write(tmp_path / "start")
    file = tmp_path / "rl.toml"
    file.write_text("""
start = "start"
train = ["base"]
beta = 0.01
held = 1
[run]
out = "out"
steps = 1
batch = 1
device = "cpu"
[questions]
hops = 1
chunk_tokens = 64
chunks = 2
distractors = 0
syllables = 1
[rollouts]
group = 2
memory_tokens = 4
overhead = 8
answer_tokens = 4
[objective]
algorithm = "dapo"
clip = [0.2, 0.28]
""")
    figures = run_stage("rl", file)
    assert figures["steps"] == 1
    assert 0 <= figures["held_answer"] <= 1
    assert Backbone.load(tmp_path / "out" / "backbone", device="cpu").memory.trained
