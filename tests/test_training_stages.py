"""Each supervised stage on a tiny set that it must memorise, its gradient and its traces."""

import json
from dataclasses import replace
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from compmem.backbone import AdapterConfig, Backbone
from compmem.errors import CheckpointError
from compmem.readers.latent import LatentReader
from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem.readers.replies import parse_reply
from compmem.schema import Document
from compmem_research.tasks.sample import Sample, Span
from compmem_research.training import compressor, lm, text, warmup
from compmem_research.training.data.components import Component
from compmem_research.training.data.examples import row_losses, written_exactly
from compmem_research.training.data.mixture import Mixture, MixtureSettings
from compmem_research.training.data.sources import chunks_of
from compmem_research.training.data.traces import as_curriculum, step_example, trace
from compmem_research.training.engine.settings import read_settings
from compmem_research.training.engine.trainer import Trainer
from compmem_research.training.text import TextPreparation
from tests.training import MEMORY, PROMPTS, TEXTS, few, hurry, prepare, settings, small_backbone, world, write_texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture
def backbone(data):
    return small_backbone(data)


# --- memorising


@pytest.mark.parametrize(
    ("component", "steps"),
    [
        (Component(kind="random", sizes=(8,), tokens=32), 40),
        (Component(kind="facts", sizes=(48,), items=(2,), tokens=144), 40),
        (Component(kind="steps", sizes=(48,), items=(2,), distractors=0, tokens=96), 50),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_a_few_rows_are_learned_by_heart_through_memory(backbone, data, tmp_path, component, steps):
    stage = few(backbone, component, data=data)
    rows = stage.batch(0, range(1))
    before = {name: float(value.detach()) for name, value in row_losses(backbone, rows).items()}
    Trainer(settings(tmp_path, steps=steps)).run(stage)
    for part in component.parts:
        own = [e for e in rows.examples if e.part == part]
        assert own, part
        assert written_exactly(backbone, own, rows.ratio) == 1.0, part
        after = row_losses(backbone, rows)
        assert float(after[part]) < 0.2 * before[part]
        assert float(after[f"exact_{part}"]) == rows.counts[f"exact_{part}"]


def test_a_backbone_knows_whether_it_was_trained_for_the_steps_of_the_loop(backbone, data, tmp_path):
    few(backbone, Component(kind="random", sizes=(8,), tokens=32)).save(tmp_path / "memory")
    stage = few(backbone, Component(kind="steps", sizes=(48,), items=(2,), distractors=0, tokens=96), data=data)
    stage.save(tmp_path / "steps")
    found = {name: Backbone.load(tmp_path / name, device="cpu").steps_trained for name in ("memory", "steps")}
    assert found == {"memory": False, "steps": True}
    file = tmp_path / "memory" / "compmem.json"
    kept = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in kept.items() if name != "steps_trained"}))
    assert Backbone.load(tmp_path / "memory", device="cpu").steps_trained, "older checkpoints were trained for it"
    file.write_text(json.dumps(kept | {"steps_trained": "no"}))
    with pytest.raises(CheckpointError, match="steps_trained='no'; it must be true or false"):
        Backbone.load(tmp_path / "memory", device="cpu")


def test_what_is_read_comes_out_of_memory_not_of_the_prompt(backbone, data, tmp_path):
    stage = few(backbone, Component(kind="random", sizes=(8,), tokens=32))
    Trainer(settings(tmp_path)).run(stage)
    rows = stage.batch(0, range(1)).examples
    swapped = [replace(row, blocks=rows[(n + 1) % len(rows)].blocks) for n, row in enumerate(rows)]
    assert written_exactly(backbone, rows, 4) == 1.0
    assert written_exactly(backbone, swapped, 4) == 0.0


# --- the stages from file to file


def test_the_stages_run_one_after_the_other_from_their_files(data, tmp_path):
    run = 'steps = 2\ndevice = "cpu"\nbatch = 1\nceiling_seconds = 0.01\nwarmup = 1'
    (tmp_path / "lm.toml").write_text(f"""
data = "{data}"
[decoder]
hidden = 32
layers = 2
heads = 2
kv_heads = 1
head_dim = 16
inner = 64
context = 512
[prompts]
update = "{{question}} # {{memory}}"
overwrite = "{{question}} {{memory}}"
answer = "{{question}} = {{memory}}"
[run]
out = "lm"
{run}
[mixture]
data = "{data}"
[[mixture.components]]
kind = "text"
sizes = [16, 32]
tokens = 64
grow_at = 0.0
grow_over = 1
[[mixture.components]]
kind = "random"
raw = 1.0
sizes = [8]
tokens = 64
""")
    report = lm.train(read_settings(tmp_path / "lm.toml", lm.LMTraining))
    assert report["steps"] == 2
    made = Backbone.load(tmp_path / "lm" / "backbone", device="cpu")
    assert not made.memory.trained
    (tmp_path / "c.toml").write_text(f"""
start = "lm/backbone"
train = ["memory"]
[adapter]
rank = 2
[memory]
window = 64
own = ["k", "v"]
[run]
out = "c"
{run}
[mixture]
data = "{data}"
ratios = [2, 4, 8]
[[mixture.components]]
kind = "rebuild"
sizes = [16]
tokens = 64
[[mixture.components]]
kind = "create"
sizes = [16]
tokens = 64
weight = 0.5
""")
    compressor.train(read_settings(tmp_path / "c.toml", compressor.CompressorTraining))
    compressed = Backbone.load(tmp_path / "c" / "backbone", device="cpu")
    assert compressed.memory.own == ("k", "v")
    assert set(compressed.adapters) == {"memory"}
    for name, parameter in made.parameters("base").items():
        assert torch.equal(parameter, compressed.parameters("base")[name]), name
    (tmp_path / "w.toml").write_text(f"""
start = "c/backbone"
[adapter]
rank = 2
[run]
out = "w"
{run}
[mixture]
data = "{data}"
[[mixture.components]]
kind = "steps"
sizes = [48]
tokens = 96
tasks = ["world", "niah_single_2"]
""")
    warmup.train(read_settings(tmp_path / "w.toml", warmup.WarmupTraining))
    reasoner = Backbone.load(tmp_path / "w" / "backbone", device="cpu")
    assert set(reasoner.adapters) == {"memory", "reasoner"}
    reader = LatentReader(reasoner)
    assert reader.structured
    assert reader.prompts.update == "{question} # {memory}"


def test_a_stage_that_has_nothing_to_train_says_so(data, tmp_path, backbone):
    backbone.save(tmp_path / "start")
    mixture = MixtureSettings(components=(Component(kind="random"),))
    with pytest.raises(ValueError, match="give the reasoner an adapter"):
        warmup.train(warmup.WarmupTraining(start=tmp_path / "start", run=settings(tmp_path / "o"), mixture=mixture))
    with pytest.raises(ValueError, match="leaves nothing to train"):
        warmup.WarmupTraining(start=tmp_path, run=settings(tmp_path), mixture=mixture, train=())
    with pytest.raises(CheckpointError, match="compmem train text"):
        lm.train(lm.LMTraining(data=tmp_path, run=settings(tmp_path / "o"), mixture=mixture))


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_frozen_model_in_bfloat16_gets_a_compressor_in_float32(saved_model, tmp_path, family):
    parts = (
        Component(kind="rebuild", sizes=(16,), tokens=32), Component(kind="create", sizes=(16,), tokens=32),
        Component(kind="facts", sizes=(160,), tokens=160),
    )  # fmt: skip
    start = saved_model(family)
    texts = write_texts(tmp_path / "t.jsonl", 200)
    text.train(TextPreparation(texts=(texts,), out=tmp_path / "packed", tokenizer=str(start)))
    report = compressor.train(
        compressor.CompressorTraining(
            start=start, run=settings(tmp_path / "o", steps=2, batch=3, bf16=True), memory=MEMORY,
            mixture=MixtureSettings(components=parts, data=tmp_path / "packed", ratios=(2, 4)),
            adapter=AdapterConfig(rank=2), dtype="bfloat16", created_tokens=4,
        )
    )  # fmt: skip
    told = {f"held_{figure}_{part}" for figure in ("exact", "loss") for part in ("rebuild", "create", "facts")}
    assert {n for n in report if n.startswith("held")} == told
    kept = load_file(tmp_path / "o" / "checkpoint.safetensors")
    assert {t.dtype for n, t in kept.items() if n.startswith("weights/")} == {torch.float32}
    assert not [n for n in kept if ".stock." in n]


# --- the compressor's gradient


def test_the_compressors_loss_has_the_slope_that_its_gradient_says(backbone, data):
    parts = (Component(kind="rebuild", sizes=(12,), tokens=24), Component(kind="facts", sizes=(56,), tokens=112))
    stage = few(backbone, *parts, data=data, trained=("memory",))
    backbone.decoder.double()
    for parameter in backbone.decoder.parameters():
        parameter.requires_grad_(False)
    for parameter in stage.parameters().values():
        parameter.requires_grad_(True)
    rows = stage.batch(0, range(6))
    assert {e.part for e in Mixture.batch(stage, 0, range(6)).examples} == {"rebuild", "facts"}

    def loss():
        sums = row_losses(backbone, rows)
        return sum(sums[part] / rows.counts[part] for part in ("rebuild", "facts") if part in sums)

    loss().backward()
    for name in ("memory_embedding", "layers.0.own.q.weight", "layers.0.own.k.weight", "layers.1.own.v.weight"):
        parameter = stage.parameters()[name]
        gradient = parameter.grad.view(-1)
        place = int(gradient.abs().argmax())
        assert gradient[place] != 0
        flat, step = parameter.data.view(-1), 1e-3
        with torch.no_grad():
            flat[place] += step
            above = loss()
            flat[place] -= 2 * step
            slope = (above - loss()) / (2 * step)
            flat[place] += step
        torch.testing.assert_close(gradient[place], slope, rtol=2e-2, atol=1e-9)
    assert all(p.grad is None for p in backbone.parameters("base").values())


def test_what_the_model_makes_of_a_text_is_learned_from_its_memory(backbone, data):
    stage = few(backbone, Component(kind="create", sizes=(12,), tokens=36), data=data)
    rows = Mixture.batch(stage, 0, range(1)).examples
    done = compressor.written_by_itself(backbone, rows, 5)
    for open_, row in zip(rows, done, strict=True):
        start, end = row.spans[-1]
        [alone] = backbone.generate([[*open_.blocks[0], *open_.ids]], max_new_tokens=5, role=None)
        assert list(row.ids[start:end]) == [*alone, backbone.tokenizer.eos_token_id]
        assert row.blocks == open_.blocks
    kept = Component(kind="facts", sizes=(48,))
    untouched = Mixture.batch(few(backbone, kept, data=data), 0, range(1)).examples
    assert compressor.written_by_itself(backbone, untouched, 5) == list(untouched)


def test_the_figures_are_those_of_greedy_decoding(backbone, data):
    stage = few(backbone, Component(kind="random", sizes=(6,), tokens=60))
    rows = stage.batch(0, range(1))
    sums = row_losses(backbone, rows)
    right = [written_exactly(backbone, [row], 4) for row in rows.examples]
    assert float(sums["exact_random"]) == sum(right)
    assert rows.counts == {"random": 140.0, "accuracy_random": 140.0, "exact_random": 20.0}


# --- the traces


def test_a_chunk_helps_when_its_fact_is_due(backbone):
    sample = world(TEXTS, ["Ox was made by Ida.", "Ida was born in Ulm."])
    chunks = chunks_of(sample, backbone, 64)
    assert [c.text for c in chunks] == TEXTS
    forward = list(trace(sample, chunks))
    assert [s.check for s in forward] == [False, False, True, False]
    assert not any(s.end for s in forward)
    assert forward[-1].memory == "Ox, maker: Ida."
    back = list(trace(sample, [chunks[1], chunks[0], chunks[2], chunks[3], chunks[0], chunks[1]]))
    assert [s.check for s in back] == [False, False, True, False, True]
    assert back[-1].end
    assert back[-1].update == "Ox, maker: Ida. Ida, birthplace: Ulm."
    assert back[-1].reply == (
        "<check>yes</check><update>Ox, maker: Ida. Ida, birthplace: Ulm.</update><next>end</next>"
    )
    assert back[0].reply == "<check>no</check><update></update><next>continue</next>"


def test_what_cannot_be_answered_never_ends(backbone):
    sample = world(TEXTS, ["Ox was made by Ida."], metric="unanswerable")
    steps = list(trace(sample, chunks_of(sample, backbone, 64)))
    assert [s.check for s in steps] == [False, False, True, False]
    assert not any(s.end for s in steps)


def test_lessons_hold_every_fact_in_the_order_that_it_is_due(backbone):
    sample = world(TEXTS, ["Ox was made by Ida.", "Ida was born in Ulm."])
    chunks = chunks_of(sample, backbone, 64)
    for seed in range(8):
        steps = list(trace(sample, as_curriculum(sample, chunks, Random(seed), 1)))
        assert steps[-1].end
        assert sum(s.check for s in steps) == 2
        assert any(not s.check for s in steps)


def test_the_note_of_a_real_question_is_its_sentence(backbone):
    sample = Sample(
        id="q", task="own", question="?", answers=("Ulm",), evidence=(Span(document="0", start=10, end=26),),
        documents=(Document(id="0", text="Ida sang. She is from Ulm."),),
    )  # fmt: skip
    [step] = trace(sample, chunks_of(sample, backbone, 64))
    assert step.update == "She is from Ulm."


def test_a_step_is_asked_and_told_as_the_reader_does(backbone, tmp_path):
    backbone.save(tmp_path / "b")
    PROMPTS.write(tmp_path / "b")
    loaded = Backbone.load(tmp_path / "b", device="cpu")
    reader, steps = LatentReader(loaded), StepPrompts(loaded, LatentPrompts.from_backbone(loaded))
    sample = world(TEXTS, ["Ox was made by Ida.", "Ida was born in Ulm."])
    for step in trace(sample, chunks_of(sample, loaded, 64)):
        row = step_example(steps, step)
        start, end = row.spans[0]
        asked = loaded.tokenizer.decode(row.ids[:start])
        assert step.question in asked
        assert (step.memory or reader.prompts.nothing) in asked
        reply = parse_reply(loaded.decode(row.ids[start:end]))
        assert (reply.check, reply.end) == (step.check, step.end)
        assert reply.update == (step.update if step.check else "")


def test_an_adapter_of_the_memory_is_given_once(data, tmp_path, backbone):
    backbone.add_adapter("memory", AdapterConfig(rank=3))
    backbone.save(tmp_path / "start")
    mixture = MixtureSettings(components=(Component(kind="random", sizes=(8,), tokens=16),))
    compressor.train(
        compressor.CompressorTraining(
            start=tmp_path / "start",
            run=settings(tmp_path / "o", steps=1),
            mixture=mixture,
            adapter=AdapterConfig(rank=5),
        )
    )
    assert Backbone.load(tmp_path / "o" / "backbone", device="cpu").adapters["memory"].rank == 3
