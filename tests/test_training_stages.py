"""Each supervised stage on a tiny set that it must memorise, its gradient, and its data."""

import json
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from compmem.backbone import AdapterConfig, Backbone, MemoryConfig
from compmem.errors import CheckpointError
from compmem.readers.latent import LatentReader
from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem.readers.replies import parse_reply
from compmem.schema import Document
from compmem_research.tasks.sample import Sample, Span
from compmem_research.tasks.synthetic_facts import Fact, WorldSample
from compmem_research.training import compressor, lm, text, warmup
from compmem_research.training.data.components import Component, Turns
from compmem_research.training.data.examples import Rows, row_losses, written_exactly
from compmem_research.training.data.mixture import Mixture, MixtureSettings
from compmem_research.training.data.packed import PackedText, read_tokenizer
from compmem_research.training.data.sources import chunks_of
from compmem_research.training.data.traces import as_curriculum, step_example, trace
from compmem_research.training.engine.settings import read_settings
from compmem_research.training.engine.trainer import RunSettings, Trainer
from compmem_research.training.from_scratch import DecoderConfig, train_tokenizer, untrained_backbone
from compmem_research.training.text import TextPreparation
from tests.training import hurry, prepare, write_texts

PROMPTS = LatentPrompts(
    nothing="-", update="{question} | {memory}", overwrite="{question} | {memory} >", answer="{question} | {memory} ="
)
MEMORY = MemoryConfig(window=64)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture
def backbone(data):
    config = DecoderConfig(hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, inner=96, context=1024)
    made = untrained_backbone(config, read_tokenizer(data), device="cpu")
    made.add_memory(MEMORY)
    return made


def settings(out, **changes):
    defaults = {"steps": 40, "batch": 1, "device": "cpu", "learning_rate": 1e-2, "warmup": 5, "log_every": 1000}
    defaults |= {"checkpoint_every": 0, "measure_every": 0, "ceiling_seconds": 0.01, "final_rate": 0.3}
    return RunSettings(out=out, **{**defaults, **changes})


class Few(Mixture):
    """A mixture in which every step has the same samples."""

    def batch(self, step, rows):
        return super().batch(step, range(2))


def few(backbone, *components, prompts=PROMPTS, data=None, trained=("base", "memory"), **changes):
    parameters = {name: p for part in trained for name, p in backbone.parameters(part).items()}
    mixture = MixtureSettings(components=components, data=data, **changes)
    return Few("few", backbone, parameters, mixture, steps=StepPrompts(backbone, prompts), seed=0)


# --- memorising


@pytest.mark.parametrize(
    ("component", "steps"),
    [
        (Component(kind="random", sizes=(8,), tokens=32), 40),
        (Component(kind="facts", sizes=(48,), items=(2,), tokens=144), 40),
        (Component(kind="lookup", sizes=(24,), items=(2,), tokens=72), 40),
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


# --- the rows


def test_the_figures_are_those_of_greedy_decoding(backbone, data):
    stage = few(backbone, Component(kind="random", sizes=(6,), tokens=60))
    rows = stage.batch(0, range(1))
    sums = row_losses(backbone, rows)
    right = [written_exactly(backbone, [row], 4) for row in rows.examples]
    assert float(sums["exact_random"]) == sum(right)
    assert rows.counts == {"random": 140.0, "accuracy_random": 140.0, "exact_random": 20.0}


def test_rows_of_many_shapes_lose_as_one_by_one(backbone, data):
    parts = [
        Component(kind="facts", sizes=(48,), items=(2,), tokens=96, raw=0.5),
        Component(kind="text", sizes=(20,), tokens=60),
        Component(kind="rebuild", sizes=(9,), tokens=27),
    ]  # fmt: skip
    rows = Mixture.batch(few(backbone, *parts, data=data), 0, range(6))
    assert len({e.part for e in rows.examples}) == 3
    whole = row_losses(backbone, rows)
    for name, value in whole.items():
        alone = [row_losses(backbone, Rows.of([e], rows.ratio)) for e in rows.examples]
        torch.testing.assert_close(float(sum(a.get(name, 0.0) for a in alone)), float(value), rtol=1e-4, atol=1e-4)


def test_chunks_of_facts_have_their_size_and_hold_every_answer(backbone, data):
    stage = few(backbone, Component(kind="facts", sizes=(250,), items=(4,), tasks=("world", "needle")), data=data)
    for row in Mixture.batch(stage, 0, range(4)).examples:
        assert len(row.blocks[0]) == 250
        chunk = backbone.decode(row.blocks[0])
        asked = backbone.decode(row.ids)
        assert len(row.spans) == 4
        for start, end in row.spans:
            assert row.ids[end - 1] == backbone.tokenizer.eos_token_id
            assert backbone.decode(row.ids[start : end - 1]) in chunk, (chunk, asked)


def test_a_mixture_grows_when_it_is_learned_and_only_then(backbone, data):
    part = Component(kind="random", sizes=(8, 16, 32), grow_at=0.9, grow_over=2)
    stage = few(backbone, part)
    lengths = lambda: {len(e.blocks[0]) for e in stage.batch(0, range(1)).examples}  # noqa: E731
    assert lengths() == {8}
    assert not stage.after({"accuracy_random": 0.95})
    assert not stage.after({"accuracy_random": 0.5})
    assert not stage.after({"accuracy_random": 0.95})
    assert not stage.after({"exact_random": 1.0})
    assert stage.after({"accuracy_random": 0.95})
    assert lengths() == {16}
    again = few(backbone, part)
    again.state.update(stage.state)
    assert {len(e.blocks[0]) for e in again.batch(0, range(1)).examples} == {16}
    for _ in range(6):
        stage.after({"accuracy_random": 1.0})
    assert lengths() == {32}


def test_held_out_rows_are_never_drawn_for_training(backbone, data):
    stage = few(backbone, Component(kind="text", sizes=(16,), tokens=160), data=data)
    packed = PackedText(data, 400)
    held = packed.window(np.random.default_rng(0), 16, held=True)
    drawn = {tuple(e.ids) for number in range(50) for e in Mixture.batch(stage, 0, range(number, number + 1)).examples}
    assert tuple(held) not in drawn


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "prose"}, "kind='prose' must be one of"),
        ({"kind": "facts", "tasks": ("niah_single_1",)}, "must be some of world, needle"),
        ({"kind": "steps", "tasks": ("niah_single_9",)}, "tasks="),
        ({"kind": "singlehop"}, "needs a file"),
        ({"kind": "facts", "sizes": (8, 16), "items": (1, 2, 3)}, "as many"),
        ({"kind": "random", "share": 0.0}, "share=0.0 must be above 0"),
        ({"kind": "random", "sizes": (0,)}, "must be at least 1"),
    ],
)
def test_components_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Component(**values)


def test_mixtures_that_cannot_be_are_refused(tmp_path, data):
    random = Component(kind="random")
    with pytest.raises(ValueError, match="two components have the name 'random'"):
        MixtureSettings(components=(random, random))
    with pytest.raises(ValueError, match="needs 'data'"):
        MixtureSettings(components=(Component(kind="text"),))
    with pytest.raises(ValueError, match="needs components"):
        MixtureSettings(components=())
    with pytest.raises(ValueError, match="set workers=0"):
        compressor.CompressorTraining(
            start=tmp_path, run=settings(tmp_path, workers=1),
            mixture=MixtureSettings(components=(Component(kind="create"),), data=data),
        )  # fmt: skip


def test_questions_about_paragraphs_come_from_their_file(backbone, tmp_path):
    file = tmp_path / "singlehop.jsonl"
    lines = [
        {"context": f"Ann{n} lives in Bel{n}. Cid sings.", "question": f"Where does Ann{n} live?", "answer": f"Bel{n}",
         "start": 13 + len(str(n))} for n in range(60)
    ]  # fmt: skip
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    part = Component(kind="singlehop", file=file, sizes=(64,), tokens=640)
    stage = few(backbone, part)
    turns = Turns(backbone, MixtureSettings(components=(part,)).prompts)
    for row in Mixture.batch(stage, 0, range(2)).examples:
        assert backbone.decode(row.ids[slice(*row.spans[0])]) in backbone.decode(row.blocks[0])
    assert turns.end == backbone.tokenizer.eos_token_id
    with pytest.raises(ValueError, match="no paragraph has at most 2 tokens"):
        few(backbone, replace(part, sizes=(2,))).batch(0, range(1))
    file.write_text('{"context": "a", "question": "b"\n')
    with pytest.raises(ValueError, match=r"singlehop\.jsonl:1: not JSON"):
        few(backbone, part)


# --- the traces


def world(texts, facts, **changes):
    documents = tuple(Document(id=str(n), text=t) for n, t in enumerate(texts))
    evidence = []
    for fact in facts:
        n = next(n for n, t in enumerate(texts) if fact in t)
        evidence.append(Span(document=str(n), start=texts[n].index(fact), end=texts[n].index(fact) + len(fact)))
    values = {"id": "w", "task": "world-2hop", "question": "Where was the maker of Ox born?", "answers": ("Ulm",)}
    told = (("Ox", "maker", "Ida"), ("Ida", "birthplace", "Ulm"))[: len(facts)]
    facts = tuple(Fact(subject=s, relation=r, object=o) for s, r, o in told)
    values |= {
        "documents": documents,
        "evidence": tuple(evidence),
        "facts": facts,
        "notes": tuple(f.note for f in facts),
    }
    return WorldSample(**{**values, **changes})


TEXTS = ["Ida was born in Ulm.", "It rained.", "Ox was made by Ida.", "Bo was born in Kiel."]


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


# --- the text


def test_the_tokenizer_keeps_bytes_tags_and_control_tokens_apart(tmp_path):
    tokenizer = train_tokenizer(["Anna met Bo in 1999."] * 9, 300)
    config = DecoderConfig(hidden=16, layers=1, heads=1, kv_heads=1, head_dim=16, inner=16, context=64)
    made = untrained_backbone(config, tokenizer, device="cpu")
    for said in ("Größe 完 🙂 <check>yes</check>", "a<|end|>b", "1999"):
        assert made.decode(made.encode(said)) == said
    assert len(made.encode_reply("<check>")) == 1
    assert made.tokenizer.eos_token_id not in made.encode("a<|end|>b")
    assert len(made.encode("1999")) == 4
    with pytest.raises(ValueError, match="has no room"):
        train_tokenizer(["a"], 100)


def test_packed_text_is_the_text(tmp_path):
    texts = write_texts(tmp_path / "t.jsonl", 50)
    told = text.train(TextPreparation(texts=(texts,), out=tmp_path, vocabulary=320))
    tokens = PackedText(tmp_path, 320)
    ids = tokens.window(np.random.default_rng(0), told["tokens"] - int(told["tokens"] * 0.02), held=False)
    said = read_tokenizer(tmp_path).decode(ids)
    first = json.loads(texts.read_text().splitlines()[0])["text"]
    assert said.startswith(first + "<|end|>")
    with pytest.raises(ValueError, match="is longer than the"):
        tokens.window(np.random.default_rng(0), 10**6, held=False)
    with pytest.raises(CheckpointError, match="of 320 tokens, and this one has 321"):
        PackedText(tmp_path, 321)
    (tmp_path / "tokens.safetensors.xz").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="has no tokens"):
        PackedText(tmp_path, 320)
    texts.write_text('{"text": "a"}\n{"tex\n')
    with pytest.raises(ValueError, match=r"t\.jsonl:2: not JSON"):
        text.train(TextPreparation(texts=(texts,), out=tmp_path))
    with pytest.raises(ValueError, match="vocabulary=70000"):
        TextPreparation(texts=(), out=tmp_path, vocabulary=70_000)


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
