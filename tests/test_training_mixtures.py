"""Mixtures of components: their rows, their growth, what they refuse; packed text."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from compmem.errors import CheckpointError
from compmem_research.training import compressor, text
from compmem_research.training.data.components import Component, Turns
from compmem_research.training.data.examples import Rows, row_losses
from compmem_research.training.data.mixture import Mixture, MixtureSettings
from compmem_research.training.data.packed import PackedText, read_tokenizer
from compmem_research.training.from_scratch import DecoderConfig, train_tokenizer, untrained_backbone
from compmem_research.training.text import TextPreparation
from tests.training import few, hurry, prepare, settings, small_backbone, write_texts


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    hurry(monkeypatch)


@pytest.fixture
def backbone(data):
    return small_backbone(data)


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
