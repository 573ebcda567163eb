"""KVzap: the importance of KV states predicted without a repetition, its fit, and its checkpoint."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from compmem import Document, IndexConfig, MemoryIndex, RuntimeConfig
from compmem.backbone import AdapterConfig, Backbone, MemoryConfig
from compmem.backbone.kvzap import predict_log_scores
from compmem.backbone.ragged import select_across_heads
from compmem.errors import CheckpointError
from compmem_research.training.importance import Fit, ImportanceTraining, train
from tests.backbones import tokens
from tests.conftest import make_model, make_tokenizer
from tests.training import LORA, SELECTED, write_set

CHUNKS = [tokens(61, 1), tokens(9, 2), tokens(30, 3), tokens(1, 4)]


def weights_for(backbone, seed=0):
    features = backbone.decoder.layers[0].linear("q").out_features
    layers, heads, _ = backbone.shape
    return torch.randn(layers, heads, features + 1, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["llama", "qwen3"])
def stock(request, tiny_backbone):
    return tiny_backbone(request.param)


@pytest.fixture
def adapted(tiny_backbone):
    """Trained memory whose states KVzip chooses, with a memory adapter that changes them."""
    backbone = tiny_backbone("llama")
    backbone.add_memory(replace(SELECTED, pruning="kvzip-heads"))
    backbone.add_adapter("memory", LORA)
    with torch.no_grad():
        for name, parameter in backbone.parameters("memory").items():
            parameter.add_(0.05 if name.endswith(".up") else 0.0)
    return backbone


def test_the_best_by_the_prediction_are_kept(stock):
    weights = weights_for(stock)
    stock.set_importance(weights)
    whole = stock.compress(CHUNKS, ratio=1)
    made = stock.compress(CHUNKS, ratio=4)
    for chunk, states, all_of_it, (features, _) in zip(
        CHUNKS, made, whole, stock.importance_examples(CHUNKS), strict=True
    ):
        if len(chunk) == 1:
            assert states.lengths is None
            continue
        score = torch.einsum("ltf,lhf->lht", features, weights[..., :-1]) + weights[..., -1:]
        wanted = select_across_heads(all_of_it, score, 4, 0)
        assert torch.equal(states.positions, wanted.positions)
        assert torch.equal(states.lengths, wanted.lengths)
        assert torch.allclose(states.values, wanted.values, atol=1e-5)
    other = stock.compress(CHUNKS[:1], ratio=4, pruning="kvzip-heads")[0]
    assert not torch.equal(other.positions, made[0].positions), "it is a prediction, not the repetition"


def test_the_examples_have_the_scores_that_kvzip_chooses_by(adapted):
    for chunk, states, (features, score) in zip(
        CHUNKS, adapted.compress(CHUNKS), adapted.importance_examples(CHUNKS), strict=True
    ):
        assert features.shape == (2, len(chunk), adapted.decoder.layers[0].linear("q").out_features)
        if len(chunk) > 1:
            whole = adapted.compress([chunk], ratio=1)[0]
            assert torch.equal(states.positions, select_across_heads(whole, score, 4, 0).positions)


def test_one_pass_over_the_text_is_enough(adapted, monkeypatch):
    counted, forward = [], type(adapted.decoder).forward

    def count(self, ids, context, **options):
        counted.append((tuple(ids.shape), options.get("role") or self.role))
        return forward(self, ids, context, **options)

    monkeypatch.setattr(type(adapted.decoder), "forward", count)
    adapted.set_importance(weights_for(adapted))
    adapted.compress(CHUNKS[:1])
    assert counted == [((1, len(adapted.chat_prefix_ids) + len(CHUNKS[0])), "memory")]


def test_trained_memory_may_be_chosen_by_the_repetition_or_its_prediction(adapted):
    with pytest.raises(ValueError, match="needs a backbone with fitted importance"):
        adapted.compress(CHUNKS, pruning="kvzap")
    by_repetition = adapted.compress(CHUNKS)[0]
    adapted.set_importance(weights_for(adapted))
    assert adapted.memory.pruning == "kvzap"
    assert torch.equal(adapted.compress(CHUNKS, pruning="kvzip-heads")[0].positions, by_repetition.positions)
    with pytest.raises(ValueError, match="is for stock models"):
        adapted.compress(CHUNKS, pruning="attention")
    made = adapted.compress(CHUNKS)
    made[0].values.sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in adapted.parameters("memory").values())
    assert adapted.decoder.importance.grad is None


def test_weights_of_another_shape_are_refused(stock, tiny_backbone):
    stock.set_importance(weights_for(stock))
    made = stock.fingerprint()
    with pytest.raises(ValueError, match="has the shape"):
        stock.set_importance(weights_for(stock)[:1])
    with pytest.raises(ValueError, match="not finite"):
        stock.set_importance(weights_for(stock) / 0)
    assert stock.fingerprint() == made, "what was there stays"
    inserted = tiny_backbone("qwen3", memory=MemoryConfig(ratio=4, window=16, own=("q",)))
    with pytest.raises(ValueError, match="inserted states are all kept"):
        inserted.set_importance(weights_for(inserted))
    assert inserted.decoder.importance is None


def test_it_is_kept_in_float32_and_counts_only_where_it_chooses(stock, tmp_path):
    before = stock.fingerprint()
    stock.save(tmp_path / "whole")
    stock.set_importance(weights_for(stock))
    assert stock.fingerprint() != before == stock.fingerprint("kvzip-heads")
    stock.save(tmp_path / "whole")
    loaded = Backbone.load(tmp_path / "whole", device="cpu", dtype="bfloat16")
    assert torch.equal(loaded.decoder.importance, weights_for(stock))
    wanted = predict_log_scores(weights_for(stock)[0], torch.ones(1, 3, 64, dtype=torch.bfloat16))
    assert wanted.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            predict_log_scores(weights_for(stock)[0], torch.ones(1, 3, 64, dtype=torch.bfloat16)), wanted
        )


def test_it_is_not_rounded_where_the_other_added_weights_are(adapted, tmp_path):
    adapted.set_importance(weights_for(adapted))
    adapted.save(tmp_path, base="a-model", dtype=torch.bfloat16)
    written = load_file(tmp_path / "compmem.safetensors")
    assert torch.equal(written.pop("importance"), weights_for(adapted))
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}


def test_memory_that_is_added_afterwards_is_chosen_as_it_says(stock):
    with pytest.raises(ValueError, match="needs fitted importance"):
        stock.add_memory(replace(SELECTED, pruning="kvzap"))
    stock.set_importance(weights_for(stock))
    stock.add_memory(replace(SELECTED, pruning="kvzap"))
    assert stock.decoder.importance is not None
    stock.add_memory(replace(SELECTED, pruning="kvzip-heads"))
    assert stock.decoder.importance is None


def test_chunks_that_cannot_be_repeated_are_refused(tiny_backbone):
    small = tiny_backbone("llama", max_position_embeddings=128)
    with pytest.raises(ValueError, match="larger than the context of 128"):
        small.importance_examples([tokens(100, 1)])


def test_the_fit_finds_a_linear_function():
    rng = torch.Generator().manual_seed(0)
    truth, bias = torch.randn(3, 2, 5, generator=rng), torch.randn(3, 2, 1, generator=rng)
    fit = Fit()
    for size in (40, 1, 70):
        features = torch.randn(3, size, 5, generator=rng) * torch.tensor([1, 10, 0.1, 3, 1]) + 7
        fit.add(features, torch.einsum("ltf,lhf->lht", features, truth) + bias)
    made = fit.weights(1e-9)
    assert fit.tokens == 111
    assert torch.allclose(made, torch.cat((truth, bias), dim=2), atol=1e-3)
    assert made[..., :-1].norm() > fit.weights(10.0)[..., :-1].norm() > 0


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A stock model, the folder of what was fitted to it, and the report."""
    folder = tmp_path_factory.mktemp("importance")
    make_model("llama", max_position_embeddings=2048).save_pretrained(folder / "stock")
    make_tokenizer().save_pretrained(folder / "stock")
    settings = ImportanceTraining(
        start=folder / "stock", out=folder / "fitted", file=write_set(folder / "set.jsonl"), passages=120, held=20,
        device="cpu", ratio=4, ridge=1e-3,
    )  # fmt: skip
    report = train(settings)
    return folder / "stock", folder / "fitted" / "backbone", report


def test_what_is_kept_is_near_to_what_kvzip_keeps(fitted):
    _, _, report = fitted
    assert report["held_correlation"] > 0.3, "within a head, so its mean alone would have none"
    assert report["held_overlap"] > 0.5, "a random choice shares a quarter"
    assert (report["passages"], report["held_ratio"]) == (120, 4)
    assert set(report["held_seconds"]) == {"kvzip-heads", "kvzap"}


def test_an_index_of_a_fitted_stock_model_uses_it(fitted, tmp_path):
    stock, folder, _ = fitted
    config = IndexConfig(memory="kv", backbone=str(folder), encoder=None, chunk_tokens=48, ratio=4)
    runtime = RuntimeConfig(device="cpu")
    with MemoryIndex.create(tmp_path / "kv.mem", config, runtime=runtime) as index:
        index.add([Document(id="a", text="Acme rents the house. The garden is large.")])
        with index.store.snapshot() as snapshot:
            [block] = snapshot.blocks([1], kv=True)
    backbone = Backbone.load(folder, device="cpu")
    assert not backbone.memory.trained
    assert backbone.fingerprint() != Backbone.load(stock, device="cpu").fingerprint()
    [wanted] = backbone.compress([backbone.encode("Acme rents the house. The garden is large.")], ratio=4)
    assert torch.equal(block.kv.positions, wanted.positions)
    with MemoryIndex.open(tmp_path / "kv.mem", runtime=runtime) as index:
        assert index.config.kv_pruning == "kvzap"
        assert not index.verify()


def test_a_folder_without_its_weights_is_refused(fitted, tmp_path):
    stock, folder, _ = fitted
    kept = load_file(folder / "compmem.safetensors")
    for number, spoilt in enumerate(
        ({}, {"importance": kept["importance"][:1]}, {"importance": kept["importance"] * torch.nan})
    ):
        shutil.copytree(folder, tmp_path / str(number))
        rest = {name: tensor for name, tensor in kept.items() if name != "importance"}
        save_file(rest | spoilt, tmp_path / str(number) / "compmem.safetensors")
        with pytest.raises(CheckpointError, match="importance"):
            Backbone.load(tmp_path / str(number), device="cpu")
    settings = json.loads((folder / "compmem.json").read_text())
    assert settings["memory"]["pruning"] == "kvzap"
    assert settings["base"] == str(stock)


def test_it_is_fitted_to_a_trained_adapter_too(fitted, tmp_path):
    stock, _, _ = fitted
    memory = Backbone.load(stock, device="cpu")
    memory.add_memory(replace(SELECTED, pruning="kvzip-heads"))
    memory.add_adapter("memory", AdapterConfig(rank=2))
    memory.save(tmp_path / "memory", base=str(stock))
    settings = ImportanceTraining(
        start=tmp_path / "memory", out=tmp_path / "out", file=stock.parent / "set.jsonl", passages=30, held=5,
        device="cpu",
    )  # fmt: skip
    assert train(settings)["held_overlap"] > 0.4
    loaded = Backbone.load(tmp_path / "out" / "backbone", device="cpu")
    assert loaded.memory == replace(memory.memory, pruning="kvzap")
    assert loaded.adapters == memory.adapters


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"passages": 0}, "at least 1"), ({"ridge": 0.0}, "above 0"), ({"ratio": 1}, "at least 2")],
)
def test_settings_that_make_no_sense(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        ImportanceTraining(start=tmp_path, out=tmp_path, file=tmp_path, **changes)


def test_memory_that_was_trained_for_another_choice_is_refused(fitted, tmp_path):
    stock, _, _ = fitted
    memory = Backbone.load(stock, device="cpu")
    memory.add_memory(SELECTED)
    memory.add_adapter("memory", AdapterConfig(rank=2))
    memory.save(tmp_path / "memory", base=str(stock))
    settings = ImportanceTraining(start=tmp_path / "memory", out=tmp_path, file=stock.parent / "set.jsonl")
    with pytest.raises(ValueError, match="was not trained on states that kvzip-heads chooses"):
        train(settings)


def test_too_few_passages_are_told(fitted, tmp_path):
    stock, _, _ = fitted
    settings = ImportanceTraining(start=stock, out=tmp_path, file=stock.parent / "set.jsonl", passages=9999)
    with pytest.raises(ValueError, match="are fewer than"):
        train(settings)
