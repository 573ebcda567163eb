"""Stage 3 on a small world of tenants, buildings and insurers."""

import json

import numpy as np
import pytest
import torch

from compmem.gate import FEATURES, GateHead
from compmem_research.metrics import calibration_error
from compmem_research.tasks.multihop import read_corpus
from compmem_research.training.dense_gate import (
    DenseGateTraining,
    calibrate,
    fit,
    mean_of,
    split_questions,
    state_loss,
    train,
)
from compmem_research.training.running.settings import read_settings
from tests.test_tasks import write

COUNT = 40


@pytest.fixture
def world(tmp_path):
    rng = np.random.default_rng(0)
    name = lambda: "".join(rng.choice(list("bdfgklmnprstv")) + rng.choice(list("aeiou")) for _ in range(3)).title()  # noqa: E731
    facts = [(name(), name() + " House", name()) for _ in range(COUNT)]
    lines = []
    for i, (tenant, house, insurer) in enumerate(facts):
        others = [facts[j] for j in rng.integers(0, COUNT, 3) if j != i]
        paragraphs = [
            {"title": tenant, "sentences": [f"{tenant} rents {house}.", "It makes rockets."], "supporting": [0]},
            {"title": house, "sentences": [f"{house} is insured by {insurer}."], "supporting": [0]},
            *(
                {"title": t, "sentences": [f"{t} rents {h}.", "It makes rockets."], "supporting": []}
                for t, h, _ in others
            ),
        ]
        asked = f"Who insures the building that {tenant} rents?"
        lines.append({"id": f"q{i}", "dataset": "own", "question": asked, "answer": insurer, "paragraphs": paragraphs})
    return write(tmp_path / "world.jsonl", *lines)


def test_a_trained_gate_finds_the_second_hop(world, tmp_path):
    settings = DenseGateTraining(
        questions=world, out=tmp_path / "out", rounds=1, steps=2, epochs=15, hidden=16, small_worlds=(5,)
    )
    report = train(settings)
    validation = report["validation"]
    assert validation["questions"]["own"]["recall@2"] >= 90
    assert validation["calibration_error"] <= 0.1
    gate = GateHead.load(tmp_path / "out" / "dense_gate.safetensors")
    assert gate.threshold == report["threshold"]
    assert json.loads((tmp_path / "out" / "dense_gate.json").read_text())["questions"]["training"] > 20


def test_the_split_is_by_id_and_shares_nothing(world):
    questions = read_corpus(world).questions
    parts = split_questions(questions)
    ids = [q.id for part in parts.values() for q in part]
    assert sorted(ids) == sorted(q.id for q in questions)
    assert {n: [q.id for q in p] for n, p in split_questions(questions[::-1]).items()} == {
        n: [q.id for q in p][::-1] for n, p in parts.items()
    }


def test_the_same_seed_gives_the_same_gate(world):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((200, len(FEATURES))).astype(np.float32)
    y = (x[:, 0] > 0).astype(np.float32)
    question = read_corpus(world).questions[0]
    settings = DenseGateTraining(questions=world, out=world, epochs=2, hidden=8)
    one, two = (fit(settings, [(question, (x, y))]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


def test_calibration_mends_an_overconfident_gate():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((4000, len(FEATURES))).astype(np.float32)
    torch.manual_seed(0)
    gate = GateHead(hidden=8)
    with torch.no_grad():
        gate.layers[-1].weight.mul_(30)
        logits = gate(torch.from_numpy(x)).numpy()
    y = (rng.random(4000) < 1 / (1 + np.exp(-0.1 * logits))).astype(np.float32)
    with torch.no_grad():
        before = calibration_error(gate.probabilities(x), y)
    calibrate(gate, [(x, y)])
    with torch.no_grad():
        after = calibration_error(gate.probabilities(x), y)
    assert after < 0.03 < before


def test_settings_come_from_a_file_and_unknown_ones_are_named(tmp_path):
    path = tmp_path / "dense_gate.toml"
    path.write_text('questions = "q.jsonl"\nout = "out"\nsmall_worlds = [2]\n[dataset_weights]\nown = 2.0\n')
    settings = read_settings(path, DenseGateTraining)
    assert settings.questions == tmp_path / "q.jsonl"
    assert settings.small_worlds == (2,)
    assert settings.dataset_weights == {"own": 2.0}
    path.write_text('questions = "q"\nout = "o"\nspeed = 3\n')
    with pytest.raises(ValueError, match="unknown setting 'speed'"):
        read_settings(path, DenseGateTraining)
    path.write_text("= nonsense")
    with pytest.raises(ValueError, match="not TOML"):
        read_settings(path, DenseGateTraining)


def test_the_loss_is_that_of_each_state_by_itself():
    torch.manual_seed(0)
    logits, sizes, counts = torch.randn(9), [4, 3, 2], torch.tensor([1.0, 3.0, 2.0])
    y = torch.tensor([1.0, 0, 1, 0, 0, 1, 0, 0, 0])  # two supporting, one, none
    state = torch.repeat_interleave(torch.arange(3), torch.tensor(sizes))
    ranked = []
    for z, t in zip(logits.split(sizes), y.split(sizes), strict=True):
        shares = torch.log_softmax(z, 0)
        ranked.append(-shares[t == 1].mean() if t.any() else torch.tensor(0.0))
    apart = torch.nn.functional.binary_cross_entropy_with_logits(logits, y, weight=counts[state])
    expected = apart + 0.3 * (torch.stack(ranked) * counts).sum() / counts.sum()
    torch.testing.assert_close(state_loss(logits, y, state, counts, 0.3), expected)


def test_composed_questions_are_taught_and_never_judge(world, tmp_path):
    names = ["Anna Berg", "Carl Dorn", "Ewa Falk"]
    pages = [
        {"title": f"Play {i}", "text": f"Play {i} is a drama written by {n}, who also acted in it. " * 3}
        for i, n in enumerate(names)
    ]
    single = [
        {"id": f"s{i}", "dataset": "nq_qed", "context": f"{n} was born in town number {i}.", "question": f"where was {n} born", "answer": f"number {i}", "start": len(n) + 18}  # noqa: E501
        for i, n in enumerate(names)
    ]  # fmt: skip
    settings = DenseGateTraining(
        questions=world, out=tmp_path / "out", rounds=1, steps=1, epochs=1, hidden=4, heads=1, small_worlds=(5,),
        distractors=write(tmp_path / "pages.jsonl", *pages), singlehop=write(tmp_path / "single.jsonl", *single),
        per_set=10,
    )  # fmt: skip
    report = train(settings)
    assert 0 < report["composed"] <= 6  # three single questions, each asked at most twice
    assert report["questions"]["training"] == 10
    assert set(report["validation"]["questions"]) == {"own"}


def test_the_mean_of_gates_is_one_gate():
    torch.manual_seed(0)
    gates = [GateHead(hidden=h) for h in (4, 6, 4)]
    one = mean_of(gates)
    x = torch.randn(20, len(FEATURES))
    torch.testing.assert_close(one(x), torch.stack([g(x) for g in gates]).mean(0))
