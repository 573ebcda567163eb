"""The memory estimate: counted on real tiny models, and of the ready configs."""

from pathlib import Path

import pytest
import torch

import compmem_research.training
from compmem.backbone import AdapterConfig, MemoryConfig
from compmem_research.training.compressor import CompressorTraining
from compmem_research.training.data.components import Component
from compmem_research.training.data.mixture import MixtureSettings
from compmem_research.training.engine.settings import read_settings
from compmem_research.training.engine.trainer import RunSettings
from compmem_research.training.memory_estimate.estimate import ESTIMATED, activation_bytes, estimate, estimate_file
from compmem_research.training.memory_estimate.shape import KNOWN, Shape
from compmem_research.training.rl import RLTraining
from compmem_research.training.text import TextPreparation

CONFIGS = Path(compmem_research.training.__file__).parent / "configs"
READY = {"qwen2.5-7b": "Qwen2.5-7B-Instruct"}
ADAPTER = AdapterConfig(rank=3, targets=("q", "v", "o", "up", "down"))


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_are_those_of_a_real_model(tiny_backbone, family, tied):
    backbone = tiny_backbone(family, memory=MemoryConfig(own=("q", "v"), window=16), tie_word_embeddings=tied)
    shape = Shape.of(backbone.model.config.to_dict())
    assert shape.parameters == sum(p.numel() for p in backbone.model.parameters())
    assert shape.memory(("q", "v")) == sum(p.numel() for p in backbone.parameters("memory").values())
    backbone.add_adapter("reasoner", ADAPTER)
    backbone.add_gate()
    assert shape.adapter(ADAPTER) == sum(p.numel() for p in backbone.parameters("reasoner").values())
    assert shape.hidden + 1 == sum(p.numel() for p in backbone.parameters("gate").values())
    states = backbone.compress([list(range(16))])[0]
    assert shape.kv_bytes(4) * states.keys.shape[2] == 4 * (states.keys.numel() + states.values.numel())


def test_known_models_have_the_published_number_of_parameters():
    assert {name: shape.parameters for name, shape in KNOWN.items()} == {
        "Qwen2.5-7B-Instruct": 7_615_616_512,
        "Qwen3-4B": 4_022_468_096,
    }


def run(**changes):
    return RunSettings(out=Path("out"), **changes)


def test_static_parts_are_counted_from_parameters():
    shape = KNOWN["Qwen3-4B"]
    mixture = MixtureSettings(components=(Component(kind="random", tokens=1024),))
    settings = CompressorTraining(
        start=Path("x"), run=run(batch=1, bf16=True), mixture=mixture, dtype="bfloat16", adapter=ADAPTER
    )
    made = estimate(settings, shape)
    trained = shape.memory(("q", "k", "v")) + shape.adapter(ADAPTER)
    gib = 2**30
    assert made["weights"] == round((2 * shape.parameters + 4 * trained) / gib, 2)
    assert made["gradients"] == round(4 * trained / gib, 2)
    assert made["optimizer"] == round(8 * trained / gib, 2)
    assert made["logits"] == round(1024 * shape.vocabulary * 12 / gib, 2)


def test_activations_are_about_what_autograd_keeps(tiny_backbone):
    backbone = tiny_backbone("qwen3")
    shape = Shape.of(backbone.model.config.to_dict())
    kept: dict[int, int] = {}

    def note(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = backbone.read([list(range(3, 131))] * 4)
    assert hidden.requires_grad
    foreseen = activation_bytes(shape, 512, 4, run())
    assert 0.6 * foreseen < sum(kept.values()) < 1.1 * foreseen


def test_what_is_asked_for_costs():
    shape = KNOWN["Qwen2.5-7B-Instruct"]
    base = {"start": Path("x"), "run": run(bf16=True), "dtype": "bfloat16", "adapter": ADAPTER}
    free = estimate(RLTraining(**base, beta=0.0), shape)
    bound = estimate(RLTraining(**base, beta=0.1), shape)
    frozen = estimate(RLTraining(**base, freeze_compressor=True), shape)
    assert free["reference"] == 0 < bound["reference"]
    assert frozen["gradients"] <= bound["gradients"]
    checked = estimate(RLTraining(**{**base, "run": run(bf16=True, checkpointing=True)}), shape)
    assert checked["activations"] < bound["activations"] / 4
    assert bound["total"] > bound["weights"] + max(bound["activations"], bound["rollouts"])


@pytest.mark.parametrize("stage", ESTIMATED)
@pytest.mark.parametrize("folder", READY)
def test_ready_configs_are_read_and_fit_on_one_gpu(folder, stage):
    made = estimate_file(stage, CONFIGS / folder / f"{stage}.toml", READY[folder])
    assert made["weights"] < made["total"] < 80


@pytest.mark.parametrize("folder", READY)
def test_ready_configs_follow_one_another(folder):
    files = {stage: read_settings(CONFIGS / folder / f"{stage}.toml", kind) for stage, kind in ESTIMATED.items()}
    text = read_settings(CONFIGS / folder / "text.toml", TextPreparation)
    assert files["compressor"].start.name == text.tokenizer == READY[folder]
    for before, after in (("compressor", "warmup"), ("warmup", "rl"), ("rl", "gate")):
        assert files[after].start == files[before].run.out / "backbone"
    assert files["rl"].adapter == files["warmup"].adapter
    assert files["rl"].memory_adapter == files["compressor"].adapter


def test_what_cannot_be_estimated(tmp_path):
    with pytest.raises(ValueError, match="no estimate for 'lm'"):
        estimate_file("lm", tmp_path)
    with pytest.raises(ValueError, match=r"no config\.json"):
        estimate_file("rl", CONFIGS / "qwen2.5-7b" / "rl.toml")
    with pytest.raises(ValueError, match="lacks 'hidden_size'"):
        Shape.of({"num_attention_heads": 2})
