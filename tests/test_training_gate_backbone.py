"""Stage 3: the gate on the backbone, from rollouts to a calibrated head."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from compmem.backbone import AdapterConfig, Backbone, MemoryConfig
from compmem.errors import CheckpointError
from compmem.gate import BackboneGate
from compmem.readers.latent_prompts import LatentPrompts
from compmem.schema import Chunk, Document
from compmem_research.tasks.sample import Sample, Span
from compmem_research.training.engine.trainer import RunSettings, Trainer
from compmem_research.training.gate import GateStage, GateTraining, make_examples
from compmem_research.training.gating import gate_examples
from compmem_research.training.gating.calibration import auc, platt, threshold_for
from compmem_research.training.gating.gate_examples import GateContext, GateState, collect, states_of
from compmem_research.training.rollouts.questions import Context
from compmem_research.training.rollouts.rollouts import Rollouts, RolloutSettings
from compmem_research.training.rollouts.trajectory import Step, Trajectory
from compmem_research.training.stages import run_stage
from tests.training import hurry

PROMPTS = LatentPrompts(update="{question}|{memory}?", overwrite="{question}|{memory}!", answer="{question}|{memory}=")


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    hurry(monkeypatch)


def test_platt_recovers_what_was_bent():
    rng = torch.Generator().manual_seed(0)
    true = torch.randn(20_000, generator=rng) * 2
    labels = (torch.rand(20_000, generator=rng) < torch.sigmoid(true)).float()
    slope, bias = platt(true / 3 + 1, labels)
    assert slope == pytest.approx(3, rel=0.05)
    assert bias == pytest.approx(-3, rel=0.05)
    assert platt(true, torch.ones(20_000)) == (1.0, 0.0), "labels all alike tell nothing"


def test_auc_is_the_chance_to_be_ranked_right():
    scores = torch.tensor([0.1, 0.4, 0.4, 0.9])
    assert auc(scores, torch.tensor([0.0, 0.0, 1.0, 1.0])) == pytest.approx((1 + 0.5 + 1 + 1) / 4)
    assert auc(scores, torch.tensor([1.0, 1.0, 0.0, 0.0])) == pytest.approx(0.125)
    assert auc(scores, torch.zeros(4)) == 0.5


def test_the_threshold_is_the_highest_that_keeps_the_recall():
    chances = torch.tensor([0.9, 0.8, 0.3, 0.2, 0.95])
    labels = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0])
    assert threshold_for(chances, labels, 0.75) == pytest.approx(0.25)
    assert threshold_for(chances, labels, 1.0) == pytest.approx(0.1)
    assert threshold_for(chances, labels, 0.5) == 0.5, "what is likely is never turned down"
    assert threshold_for(chances, torch.zeros(5), 1.0) == 0.5


def chained(backbone):
    """Three chunks; the second fact comes before the first."""
    document = Document(id="d", text="aaaabbbbcccc")
    spans = (Span(document="d", start=8, end=12), Span(document="d", start=4, end=8))
    sample = Sample(id="q", task="t", question="q?", answers=("x",), documents=(document,), evidence=spans)
    chunks = [Chunk(text=document.text[a : a + 4], document_id="d", start=a) for a in (0, 4, 8)]
    return Context.of(sample, chunks, backbone)


def test_every_working_memory_meets_every_chunk(tiny_backbone):
    context = chained(tiny_backbone())
    steps = [("", False, 0), ("", False, 1), ("", True, 2), ("first", False, 1)]
    run = Trajectory(
        steps=tuple(Step(evidence=False, check=c, memory=m, number=n) for m, c, n in steps), enough=0, answer=""
    )
    assert states_of(context, [run, run], "any") == (
        GateState("", (False, True, True)),
        GateState("first", (False, True, True)),
    )
    assert states_of(context, [run], "due") == (
        GateState("", (False, False, True)),
        GateState("first", (False, True, False)),
    )


def test_rollouts_are_kept_as_lines(tmp_path, tiny_backbone):
    backbone = tiny_backbone(memory=MemoryConfig(window=16))
    rollouts = Rollouts(backbone, RolloutSettings(memory_tokens=4, overhead=0, answer_tokens=1), PROMPTS, 4)
    made = collect(rollouts, [chained(backbone)], [[1, 2]])
    file = tmp_path / "new" / "rollouts.jsonl"
    gate_examples.write(file, made, {"seed": 0, "start": "a"})
    assert gate_examples.read(file, {"seed": 0, "start": "a"}) == made
    with pytest.raises(ValueError, match="was made with seed=0, not 1; start='a', not 'b': remove it"):
        gate_examples.read(file, {"seed": 1, "start": "b"})
    assert made[0].chunks == tuple(tuple(ids) for ids in chained(backbone).ids)
    file.write_text(file.read_text() + '{"question": "q", "chunks": [[1]], "states": [["", [1, 0]]]}\n')
    with pytest.raises(ValueError, match="3: no rollouts for the gate: as many labels as chunks"):
        gate_examples.read(file, {"seed": 0, "start": "a"})
    file.write_text(file.read_text().partition("\n")[2])
    with pytest.raises(ValueError, match="1: no rollouts for the gate: 'made_of'; remove the file"):
        gate_examples.read(file, {"seed": 0, "start": "a"})


@pytest.fixture
def gated(tiny_backbone):
    """A backbone with a gate to train."""
    backbone = tiny_backbone("qwen3", memory=MemoryConfig(window=16), seed=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone.add_adapter("gate", AdapterConfig(rank=8, alpha=16, targets=("q", "k", "v", "o", "up", "down")))
    backbone.add_gate()
    return backbone


def examples(count, seed):
    """Chunks of one letter: "b" helps at first, and "c" once the notes have the first."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        letters = "".join(rng.permutation(list("abcd")))
        chunks = tuple(tuple(67 + (ord(letter) - ord("a")) for _ in range(4)) for letter in letters)
        states = (
            GateState("", tuple(letter == "b" for letter in letters)),
            GateState("bbbb", tuple(letter == "c" for letter in letters)),
        )
        made.append(GateContext("q", chunks, states))
    return made


def settings(out, **changes):
    run = {"steps": 50, "batch": 8, "learning_rate": 5e-3, "warmup": 5, "measure_every": 0, "device": "cpu"}
    run |= {"checkpoint_every": 0, "weight_decay": 0.0, **changes.pop("run", {})}
    return GateTraining(**{"start": out, "run": RunSettings(out=out, **run), "held": 16, "prompts": PROMPTS} | changes)


@pytest.mark.parametrize("blind", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_gate_learns_what_helps_with_these_notes(tmp_path, gated, blind):
    frozen = {n: p.detach().clone() for n, p in gated.decoder.named_parameters() if "gate_" not in n}
    held = examples(32, 1)
    given = settings(tmp_path, blind=blind)
    figures = Trainer(given.run).run(GateStage(given, gated, examples(64, 0), held))
    # The notes decide between two of the four chunks: who cannot see them ranks 5 of 6 pairs right at best.
    assert figures["held_auc"] == pytest.approx(5 / 6 if blind else 1, abs=0.02)
    assert figures["held_calibration_error"] < 0.05
    assert figures["held_recall"] > 0.95
    assert figures["held_let_through"] == pytest.approx(0.5 if blind else 0.25, abs=0.03)
    now = dict(gated.decoder.named_parameters())
    assert all(torch.equal(p, now[name]) for name, p in frozen.items()), "nothing but the gate changes"
    served = Backbone.load(tmp_path / "backbone", device="cpu")
    with torch.no_grad():
        gate = BackboneGate(served, "q")
        blocks = served.compress(held[0].chunks, ratio=4)
        chances = {notes: gate.probabilities("" if blind else notes, blocks) for notes in ("", "bbbb")}
    assert gate.threshold == pytest.approx(figures["threshold"])
    for state in held[0].states:
        passed = [chance >= gate.threshold for chance in chances[state.memory]]
        assert all(p for p, helps in zip(passed, state.labels, strict=True) if helps)
        assert sum(passed) == (2 if blind else 1)


def test_a_folded_calibration_is_the_calibration(tmp_path, gated):
    with torch.no_grad():
        gated.decoder.gate_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    given = settings(tmp_path, run={"steps": 1})
    stage = GateStage(given, gated, examples(4, 0), examples(8, 1))
    figures = stage.measure(0)
    before, _ = stage._scored(examples(8, 1))
    slope, bias = stage._scale
    stage.save(tmp_path / "saved")
    after, _ = stage._scored(examples(8, 1))
    assert torch.allclose(after, slope * before + bias, atol=1e-4)
    assert slope != 1
    assert Backbone.load(tmp_path / "saved", device="cpu").threshold == figures["threshold"]


def test_rollouts_are_made_once(tmp_path, tiny_backbone):
    backbone = tiny_backbone(memory=MemoryConfig(window=16))
    rollouts = RolloutSettings(exit_gate=False, group=1, memory_tokens=4, overhead=0, answer_tokens=1)
    given = settings(tmp_path, contexts=2, held=1, at_once=3, rollouts=rollouts)
    drawn = []

    def draw(number, held):
        drawn.append(held)
        return chained(backbone)

    first = make_examples(given, backbone, draw)
    assert drawn == [False, False, True, True]
    assert make_examples(given, backbone, draw) == first
    assert len(drawn) == 4
    for changed, start, message in (
        (replace(given, contexts=3), None, "contexts=2, not 3"),
        (replace(given, ratio=2), None, "ratio=None, not 2"),
        (given, "other", "start=None, not 'other'"),
    ):
        with pytest.raises(ValueError, match=f"was made with {message}: remove it"):
            make_examples(changed, backbone, draw, start)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": 0}, "at least 1"),
        ({"pos_weight": 0.0}, "above 0"),
        ({"recall": 0.0}, "recall"),
        ({"rollouts": RolloutSettings()}, "exit_gate = false"),
        ({"run": {"workers": 2}}, "workers=0"),
    ],
)
def test_settings_that_make_no_sense(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        settings(tmp_path, **changes)


def test_a_config_file_runs_it(tmp_path, tiny_backbone):
    tiny_backbone("qwen3", memory=MemoryConfig(window=64)).save(tmp_path / "start")
    PROMPTS.write(tmp_path / "start")
    file = tmp_path / "gate.toml"
    file.write_text("""
start = "start"
contexts = 2
held = 1
blocks = 2
[run]
out = "out"
steps = 2
batch = 1
device = "cpu"
[questions]
hops = 1
chunk_tokens = 128
chunks = 2
distractors = 0
syllables = 1
[rollouts]
group = 1
exit_gate = false
memory_tokens = 4
overhead = 0
answer_tokens = 1
[adapter]
rank = 2
alpha = 4
targets = ["q", "v"]
""")
    figures = run_stage("gate", file)
    assert 0 <= figures["held_auc"] <= 1
    trained = Backbone.load(tmp_path / "out" / "backbone", device="cpu")
    assert trained.has_gate
    assert trained.adapters["gate"] == AdapterConfig(rank=2, alpha=4, targets=("q", "v"))


def test_a_threshold_that_is_none_is_refused(tmp_path, gated):
    gated.save(tmp_path)
    file = tmp_path / "compmem.json"
    file.write_text(file.read_text().replace('"threshold": 0.5', '"threshold": 7'))
    with pytest.raises(CheckpointError, match="between 0 and 1"):
        Backbone.load(tmp_path, device="cpu")
