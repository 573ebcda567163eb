"""Selected states: compression trained on a frozen pretrained model, and the choice of states."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from compmem import Document, IndexConfig, MemoryIndex
from compmem.backbone import Backbone, MemoryConfig, chunk_ids
from compmem.backbone.stock import SHIPPED_FOLDER
from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem.schema import Chunk
from compmem_research.tasks.multihop import read_corpus
from compmem_research.training.data.components import Component
from compmem_research.training.data.examples import Example, Rows, as_text, row_losses
from compmem_research.training.data.multihop import MultihopRows, is_held
from compmem_research.training.data.sources import QuestionSource
from compmem_research.training.engine.trainer import Trainer
from compmem_research.training.rollouts.likelihood import frozen_copy
from tests.hashing import HashEncoder
from tests.training import LORA, SELECTED, few, hurry, settings, write_set

TEXTS = [list(b"Ida was born in Ulm, and Bo sings there in the evening."), list(b"Ox is a town.")]


@pytest.fixture(params=["attention", "kvzip-heads"])
def selected(request, tiny_backbone):
    """A tiny stock model to whose states an adapter was added that is not trained yet, by how states are chosen."""
    backbone = tiny_backbone("llama")
    backbone.add_memory(replace(SELECTED, pruning=request.param))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone.add_adapter("memory", LORA)
    return backbone


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    hurry(monkeypatch)


@torch.inference_mode()
def test_before_training_the_states_are_those_of_the_stock_model(selected, tiny_backbone):
    stock = tiny_backbone("llama")
    assert selected.chat_prefix_ids == stock.chat_prefix_ids != []
    assert chunk_ids(selected, Chunk(text="Ida.")) == chunk_ids(stock, Chunk(text="Ida."))
    for ratio in (1, 4):
        made = selected.compress(TEXTS, ratio=ratio)
        wanted = stock.compress(TEXTS, ratio=ratio, pruning=selected.memory.pruning)
        for mine, theirs in zip(made, wanted, strict=True):
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)
        assert torch.equal(selected.read([[5, 6]], [made]), stock.read([[5, 6]], [wanted]))
    assert selected.fingerprint() != stock.fingerprint()


def test_only_the_memory_adapter_changes_the_states_and_learns_from_what_is_read(selected):
    selected.add_adapter("reasoner", LORA)
    before = selected.compress(TEXTS)[0]
    with torch.no_grad():
        for parameter in selected.parameters("reasoner").values():
            parameter.add_(0.01)
        assert torch.equal(selected.compress(TEXTS)[0].values, before.values)
        for name, parameter in selected.parameters("memory").items():
            parameter.add_(0.01 if name.endswith(".up") else 0.0)
    after = selected.compress(TEXTS)[0]
    assert not torch.allclose(after.values, before.values)
    selected.read([[5, 6]], [[after]]).sum().backward()
    learned = selected.parameters("memory").items()
    assert {name.split(".")[-2] for name, p in learned if p.grad is not None and p.grad.abs().sum() > 0} == {
        f"memory_{name}" for name in LORA.targets
    }


def passes(backbone, monkeypatch):
    """Counts the rows that go through the stock model's layers, and those that go through them with an adapter."""
    counts, forward = {}, type(backbone.decoder).forward

    def counted(self, ids, context, **options):
        counts[options.get("role") or self.role] = counts.get(options.get("role") or self.role, 0) + len(ids)
        return forward(self, ids, context, **options)

    monkeypatch.setattr(type(backbone.decoder), "forward", counted)
    return counts


def test_scores_of_chunks_are_kept_until_the_stock_model_changes(tiny_backbone, monkeypatch):
    backbone = tiny_backbone("llama")
    backbone.add_memory(replace(SELECTED, pruning="kvzip-heads"))
    backbone.add_adapter("memory", LORA)
    wanted = backbone.compress(TEXTS)
    backbone.cache_scores(2)
    counts = passes(backbone, monkeypatch)
    with torch.no_grad():
        backbone.compress(TEXTS[:1])
        backbone.compress(TEXTS)  # one is known
        backbone.compress([*TEXTS, TEXTS[0]])
    assert counts == {None: 2 * len(TEXTS), "memory": 6}, "each is read and repeated once by the stock model"
    made = backbone.compress(TEXTS)
    for mine, theirs in zip(made, wanted, strict=True):
        assert torch.equal(mine.positions, theirs.positions)
        assert torch.equal(mine.values, theirs.values)
    made[0].values.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in backbone.parameters("memory").values())
    with torch.no_grad():
        for parameter in backbone.parameters("memory").values():
            parameter.add_(0.01)
        backbone.compress(TEXTS)
        assert counts[None] == 2 * len(TEXTS), "they do not depend on what is added"
        backbone.compress([TEXTS[0][:9]])  # pushes the oldest one out
        backbone.compress(TEXTS[:1])
        assert counts[None] == 2 * len(TEXTS) + 4
        backbone.decoder.embed_tokens.weight.add_(0.01)
        backbone.compress(TEXTS[:1])
        assert counts[None] == 2 * len(TEXTS) + 6


def test_a_frozen_copy_shares_the_scores_while_the_stock_model_is_frozen(tiny_backbone, monkeypatch):
    backbone = tiny_backbone("llama")
    backbone.add_memory(replace(SELECTED, pruning="kvzip-heads"))
    backbone.add_adapter("memory", LORA)
    backbone.cache_scores(4)
    shared = frozen_copy(backbone, backbone.parameters("memory").values())
    apart = frozen_copy(backbone, [*backbone.parameters("memory").values(), *backbone.parameters("base").values()])
    counts = passes(backbone, monkeypatch)
    with torch.no_grad():
        for number, model in enumerate((backbone, shared, apart)):
            model.compress(TEXTS)
            assert counts[None] == 2 * len(TEXTS) * (1 + number // 2)


def test_scores_are_kept_from_a_pass_with_autocast_to_one_without(tiny_backbone, monkeypatch):
    backbone = tiny_backbone("llama")
    backbone.cache_scores(4)
    counts = passes(backbone, monkeypatch)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        made = backbone.compress(TEXTS, pruning="kvzip", ratio=4)
    with torch.no_grad():
        again = backbone.compress(TEXTS, pruning="kvzip", ratio=4)
    assert counts[None] == 4 * len(TEXTS), "read, repeated and made; then only made"
    assert all(torch.equal(a.positions, b.positions) for a, b in zip(made, again, strict=True))


def test_a_question_whose_evidence_is_too_long_gives_way_to_the_next(tmp_path):
    file, lines = tmp_path / "set.jsonl", write_set(tmp_path / "set.jsonl").read_text().splitlines()
    for number, line in enumerate(lines[::2]):
        question = json.loads(line)
        question["paragraphs"][0]["sentences"].append("word " * 60)
        lines[2 * number] = json.dumps(question)
    file.write_text("\n".join(lines))
    source = QuestionSource(file, lambda texts: [len(text.split()) for text in texts], chunks=2)
    drawn = [source(number, 20, 1, False) for number in range(20)]
    assert all(sample.tokens <= 40 for sample in drawn)
    assert all(int(sample.id[1:]) % 2 for sample in drawn)
    assert len({sample.id for sample in drawn}) > 5
    with pytest.raises(ValueError, match="no question's evidence fits in 2 chunks of 1 tokens"):
        source(0, 1, 1, False)


def test_it_learns_answers_from_several_blocks_with_the_model_frozen(selected, tmp_path):
    file = write_set(tmp_path / "set.jsonl")
    component = Component(kind="multihop", file=file, sizes=(64,), items=(2,), tokens=200)
    stage = few(selected, component, trained=("memory",))
    frozen = {name: p.clone() for name, p in selected.parameters("base").items()}
    [before] = [stage.measure(0)["held_loss_multihop"]]
    after = Trainer(settings(tmp_path / "run", steps=10, learning_rate=2e-2, warmup=2)).run(stage)["held_loss_multihop"]
    assert after < 0.8 * before
    assert all(torch.equal(p, frozen[name]) for name, p in selected.parameters("base").items())


def test_repetition_chooses_with_the_stock_model_whatever_was_trained(tiny_backbone):
    stock, chosen = tiny_backbone("llama"), []
    for pruning in ("kvzip", "kvzip-heads"):
        backbone = tiny_backbone("llama")
        backbone.add_memory(replace(SELECTED, pruning=pruning))
        backbone.add_adapter("memory", LORA)
        with torch.no_grad():
            for parameter in backbone.parameters("memory").values():
                parameter.add_(0.05)
            for mine, theirs in zip(backbone.compress(TEXTS), stock.compress(TEXTS, pruning=pruning), strict=True):
                assert torch.equal(mine.positions, theirs.positions)
                assert not torch.allclose(mine.values, theirs.values)
                chosen.append(mine.positions)
        with pytest.raises(ValueError, match=f"kv_pruning='attention' is for stock models: .* with '{pruning}'"):
            backbone.compress(TEXTS, pruning="attention")
    assert chosen[0].shape != chosen[2].shape


def test_an_index_uses_the_choice_that_its_backbone_was_trained_with(selected, tmp_path):
    config = IndexConfig(memory="kv", backbone="tiny", encoder=HashEncoder(), ratio=4)
    with MemoryIndex.create(tmp_path / "own", config, backbone=selected) as index:
        index.add([Document(id="a", text="Ida was born in Ulm, and Bo sings there in the evening.")])
        with index.store.snapshot() as snapshot:
            [block] = snapshot.blocks(snapshot.document_blocks("a"))
    assert (block.kv.lengths is None) == (selected.memory.pruning == "attention")
    with MemoryIndex.open_or_create(tmp_path / "own", replace(config, ratio=None), backbone=selected) as index:
        assert index.add([Document(id="b", text="Ox is a town.")]) == 1
    others = replace(config, kv_pruning="kvzip")
    refused = pytest.raises(ValueError, match="kv_pruning='kvzip' is for stock models")
    with MemoryIndex.create(None, others, backbone=selected) as index, refused:
        index.add([Document(id="a", text="Ox is a town.")])


def test_what_is_distilled_is_what_the_model_says_behind_the_text(selected, tmp_path):
    """At ratio 1 the states of one block are those of the text, so there is nothing to learn."""
    asked = selected.prompt("{question}").fill(question=list(b"Who?"))
    rows = [
        Example(part="a", blocks=(TEXTS[0],), ids=[*asked, *b"Ida"], spans=((len(asked), len(asked) + 3),)),
        Example(part="b", blocks=(TEXTS[1],), ids=list(b" So is Ulm."), spans=((1, 11),)),
    ]
    text = as_text(selected, rows[1])
    assert text.ids == [*selected.chat_prefix_ids, *TEXTS[1], *rows[1].ids]
    assert text.ids[slice(*text.spans[0])] == list(b"So is Ulm.")
    losses = {ratio: row_losses(selected, Rows.of(rows, ratio), distill=1.0) for ratio in (1, 4)}
    for part in "ab":
        assert abs(losses[1][part]) < 1e-4
        assert losses[4][part] > 1e-2


def test_the_shipped_backbone_and_checkpoints_without_the_setting_are_unchanged(tiny_backbone, tmp_path):
    shipped = Backbone.load("embedded", device="cpu")
    told = json.loads((SHIPPED_FOLDER / "embedded" / "training.json").read_text())
    assert shipped.fingerprint() == told["fingerprint"]
    assert (shipped.memory.states, shipped.chat_prefix_ids, shipped.base) == ("inserted", [], None)
    backbone = tiny_backbone("llama", memory=MemoryConfig(window=16))
    backbone.save(tmp_path)
    kept = json.loads((tmp_path / "compmem.json").read_text())
    del kept["memory"]["states"], kept["memory"]["pruning"], kept["base_fingerprint"]
    (tmp_path / "compmem.json").write_text(json.dumps(kept))
    old = Backbone.load(tmp_path, device="cpu")
    assert old.fingerprint() == backbone.fingerprint()
    for mine, theirs in zip(old.compress(TEXTS), backbone.compress(TEXTS), strict=True):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)


@pytest.mark.parametrize("changes", [{"states": "some"}, {"own": ("q",)}, {"positions": "unrotated"}])
def test_settings_that_do_not_fit_are_refused(changes):
    with pytest.raises(ValueError, match="states="):
        MemoryConfig(**{"states": "selected", "own": (), **changes})
    with pytest.raises(ValueError, match="pruning='best' must be one of"):
        MemoryConfig(states="selected", own=(), pruning="best")
    with pytest.raises(ValueError, match="pruning='kvzip' needs states='selected'"):
        MemoryConfig(pruning="kvzip")


# --- the rows


def test_a_question_stands_behind_its_gold_paragraphs_and_none_is_trained_and_held(selected, tmp_path):
    file = write_set(tmp_path / "set.jsonl")
    prompts = StepPrompts(selected, LatentPrompts())
    rows = MultihopRows("multihop", file, prompts, tokens=4000, raw=0.0)
    seen = {}
    for held in (False, True):
        made = rows(np.random.default_rng(0), 64, 2, held)
        seen[held] = set()
        for row in made:
            text = selected.decode(row.ids)
            number = text.partition("Where was Ida")[2].partition(" ")[0]
            blocks = [selected.decode(block) for block in row.blocks]
            assert len(blocks) == 2
            assert any(f"Ida{number} was born in" in block for block in blocks)
            learned = selected.decode(row.ids[slice(*row.spans[0])])
            assert any(f"born in {learned}." in block for block in blocks)
            seen[held].add(f"q{number}")
    assert seen[True]
    assert seen[False]
    assert not seen[True] & seen[False]
    assert all(is_held(question) for question in read_corpus(file).questions if question.id in seen[True])
    [raw, *_] = MultihopRows("multihop", file, prompts, tokens=10, raw=1.0)(np.random.default_rng(0), 64, 2, False)
    assert not raw.blocks
    assert raw.ids[: len(selected.chat_prefix_ids)] == selected.chat_prefix_ids
