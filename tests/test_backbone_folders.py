"""Folders, devices and settings of a backbone: what is saved, loaded and refused."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from compmem.backbone import AdapterConfig, Backbone, MemoryConfig, Prompt
from compmem.errors import CheckpointError
from tests.backbones import MEMORY, randomize, tokens


@torch.inference_mode()
def test_a_saved_backbone_is_the_one_loaded(tiny_backbone, tmp_path):
    backbone = tiny_backbone("qwen3", memory=MEMORY, tie_word_embeddings=True)
    backbone.add_adapter("memory", AdapterConfig(rank=3, targets=("q", "up")))
    backbone.add_adapter("reasoner", AdapterConfig(rank=2))
    backbone.add_gate()
    for part in ("memory", "reasoner", "gate"):
        randomize(backbone, part)
    backbone.save(tmp_path / "whole")
    backbone.save(tmp_path / "added", base=str(tmp_path / "whole"))
    for name in ("whole", "added"):
        loaded = Backbone.load(tmp_path / name, device="cpu")
        assert (loaded.memory, loaded.adapters) == (backbone.memory, backbone.adapters)
        assert loaded.fingerprint() == backbone.fingerprint()
        for mine, theirs in zip(loaded.compress([tokens(40)]), backbone.compress([tokens(40)]), strict=True):
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)
        assert torch.equal(loaded.score([[5, 6]], [[mine]], [7]), backbone.score([[5, 6]], [[mine]], [7]))
    assert not (tmp_path / "added" / "config.json").exists()


def test_the_fingerprint_is_of_what_makes_a_block(tiny_backbone, tmp_path):
    backbone = tiny_backbone(memory=MEMORY)
    backbone.save(tmp_path)
    first = backbone.fingerprint()
    assert Backbone.load(tmp_path, device="cpu", dtype="bfloat16").fingerprint() == first
    backbone.add_gate()
    backbone.add_adapter("reasoner", AdapterConfig())
    randomize(backbone, "gate")
    assert backbone.fingerprint() == first
    randomize(backbone, "memory")
    assert backbone.fingerprint() != first
    assert tiny_backbone(memory=MEMORY, seed=3).fingerprint() != first


@pytest.fixture
def lychee(saved_model):
    """A folder in the public format, with its names for parameters and settings."""
    folder = saved_model("qwen2")
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, weight in list(weights.items()):
        for kind in ("k_proj", "v_proj"):
            if kind in name:
                weights[name.replace(kind, f"lychee_memory_{kind}")] = torch.randn(weight.shape, generator=generator)
    weights["model.lychee_memory_embed_tokens.weight"] = torch.randn(1, 64, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"ratio": [2, 4, 8], "window": 16, "stride": 16, "param": ["k", "v"], "attn": "full-coverage"}
    config = json.loads((folder / "config.json").read_text())
    change(folder, **{f"lychee_memory_{key}": value for key, value in settings.items()})
    return folder, weights, config


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_the_public_format_loads_as_it_is(lychee, caplog):
    folder, weights, _ = lychee
    with caplog.at_level(logging.WARNING):
        backbone = Backbone.load(folder, device="cpu")
    assert backbone.memory == MemoryConfig(ratio=4, window=16, own=("k", "v"), positions="unrotated")
    assert Backbone.load(folder, device="cpu", ratio=8).memory.ratio == 8
    assert torch.equal(backbone.decoder.memory_embedding, weights["model.lychee_memory_embed_tokens.weight"])
    theirs = weights["model.layers.1.self_attn.lychee_memory_v_proj.bias"]
    assert torch.equal(backbone.parameters("memory")["layers.1.own.v.bias"], theirs)
    assert not caplog.records


def test_a_tokenizer_is_what_its_file_says(saved_model, tiny_tokenizer):
    folder = saved_model("qwen2")
    assert Backbone.load(folder, device="cpu").encode("it's  12345") == tiny_tokenizer.encode("it's  12345")


# --- prompts


def test_a_prompt_is_tokenised_in_pieces_and_filled_with_ids(tiny_backbone):
    backbone = tiny_backbone()
    prompt = backbone.prompt("\nAsk: {question}\nMemory: {memory}\n")
    assert prompt.gaps == ("question", "memory")
    ids = prompt.fill(question=[7, 8], memory=[])
    assert len(ids) == len(prompt) + 2
    whole = prompt.fill(question=backbone.encode("who?"), memory=backbone.encode("x"))
    assert backbone.tokenizer.decode(whole) == "<|turn|>user\n\nAsk: who?\nMemory: x\n<|end|>\n<|turn|>assistant\n"
    with pytest.raises(ValueError, match=r"has the gaps \['memory', 'question'\], not \['question'\]"):
        prompt.fill(question=[1])


def test_without_a_chat_template_the_text_stands_alone_and_a_warning_says_so(tiny_tokenizer, caplog):
    plain = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|end|>")
    with caplog.at_level(logging.WARNING):
        assert plain.decode(Prompt("Q: {q}\nA:", plain).fill(q=plain.encode("who?"))) == "Q: who?\nA:"
    assert "has no chat template" in caplog.text


# --- bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt_neox"}, "is of the family 'gpt_neox'; supported are qwen2, qwen3, llama, mistral"),
        ({"use_sliding_window": True}, "uses sliding-window attention"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "uses 'dynamic' rotary positions"),
        ({"rope_parameters": "dynamic"}, "rotary positions no object"),
        ({"layer_types": 5}, "'layer_types' is no list"),
        ({"lychee_memory_attn": "step-expansion"}, "has lychee_memory_attn='step-expansion'; supported is"),
        ({"lychee_memory_stride": 8}, "a stride that differs from its window of 16"),
        ({"lychee_memory_window": 15, "lychee_memory_stride": 15}, "window=15 must be a multiple of ratio=4"),
        ({"lychee_memory_param": ["k", "v", "o"]}, "lacks 2 memory weights, such as 'model.layers.0.self_attn.lychee_"),
        ({"num_hidden_layers": 3, "layer_types": None}, "lacks 12 weights of the model"),
    ],
)
def test_a_folder_that_cannot_be_run_is_refused_by_name(lychee, fields, message):
    folder, _, _ = lychee
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        Backbone.load(folder, device="cpu")


def test_folders_that_are_no_model(tmp_path, tiny_backbone):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"contains no model: no config.json"):
        Backbone.load(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        Backbone.load(tmp_path / "empty")
    tiny_backbone(memory=MEMORY).save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "compmem.json").read_text())
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps({**settings, "format": 9}))
    with pytest.raises(CheckpointError, match="has the format 9; supported is 1"):
        Backbone.load(tmp_path / "saved")
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps({**settings, "memory": {"ratios": 4}}))
    with pytest.raises(CheckpointError, match=r"is invalid: .*ratios"):
        Backbone.load(tmp_path / "saved")
    roles = {**settings, "adapters": {"critic": {"rank": 2}}}
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps(roles))
    with pytest.raises(CheckpointError, match=r"has the roles \['critic'\]; supported are"):
        Backbone.load(tmp_path / "saved")
    changed = {**settings["memory"], "own": ["q"]}
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps({**settings, "memory": changed, "gate": True}))
    with pytest.raises(CheckpointError, match=r"lacks 2 memory weights, such as 'gate_head.bias'"):
        Backbone.load(tmp_path / "saved")
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps(settings))
    weights = load_file(tmp_path / "saved" / "compmem.safetensors")
    save_file({**weights, "memory_embedding": torch.zeros(1, 32)}, tmp_path / "saved" / "compmem.safetensors")
    with pytest.raises(CheckpointError, match=r"'memory_embedding' .* has the shape \(1, 32\), not \(1, 64\)"):
        Backbone.load(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Backbone.load(tmp_path / "saved")


def test_a_name_that_cannot_be_fetched(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"'nobody/nothing' is neither a folder nor a \.gguf file, and no model of that"
    ):
        Backbone.load("nobody/nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_devices_and_dtypes_that_are_not_there(saved_model):
    with pytest.raises(ValueError, match=r"device='cuda': torch sees no CUDA device here"):
        Backbone.load(saved_model(), device="cuda")
    with pytest.raises(ValueError, match=r"dtype='int3' must be one of float32, bfloat16, float16"):
        Backbone.load(saved_model(), dtype="int3")


@torch.inference_mode()
def test_what_does_not_fit_is_named(tiny_backbone):
    backbone = tiny_backbone(memory=MEMORY, max_position_embeddings=64)
    [states] = backbone.compress([tokens(40)])
    with pytest.raises(
        ValueError, match=r"prompt 0 of 50 tokens, behind 10 memory tokens and with 5 to write, is larger"
    ):
        backbone.generate([tokens(50)], [[states]], max_new_tokens=5)
    with pytest.raises(ValueError, match=r"chunk 1 of 300 tokens takes \d+: larger than the context of 64"):
        backbone.compress([tokens(5), tokens(300)])
    with pytest.raises(ValueError, match="chunk 0 has no tokens"):
        backbone.compress([[]])
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        backbone.read([[]])
    with pytest.raises(ValueError, match="1 rows of blocks for 2 prompts"):
        backbone.read([[1], [2]], [[states]])
    with pytest.raises(ValueError, match="1 seeds for 2 prompts"):
        backbone.generate([[1], [2]], max_new_tokens=1, seeds=[0])
    with pytest.raises(ValueError, match="max_new_tokens=0 must be at least 1"):
        backbone.generate([[1]], max_new_tokens=0)
    with pytest.raises(ValueError, match=r"temperature=-1 must not be negative"):
        next(backbone.stream([1], max_new_tokens=1, temperature=-1))
    with pytest.raises(CheckpointError, match="no gate head"):
        backbone.score([[1]], [[states]], [2])
    other = tiny_backbone(memory=MEMORY, num_hidden_layers=3).compress([tokens(8)])
    with pytest.raises(ValueError, match=r"KV states of shape \(3, 2, 2, 16\) are of another backbone: .* 2 layers"):
        backbone.read([[1]], [other])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ratio": 0}, "ratio=0 must be"), ({"window": 0}, "window=0"), ({"own": ("x",)}, "has ..x.."),
        ({"positions": "flat"}, "positions='flat'"), ({"ratio": 3}, "window=2048 must be a multiple of ratio=3"),
    ],
)  # fmt: skip
def test_memory_settings_are_checked(config, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**config)


def test_adapter_settings_are_checked(tiny_backbone):
    with pytest.raises(ValueError, match="trained=True"):
        tiny_backbone().add_memory(MemoryConfig(trained=False))
    with pytest.raises(ValueError, match="rank=0"):
        AdapterConfig(rank=0)
    for targets in (("embed",), ()):
        with pytest.raises(ValueError, match="targets="):
            AdapterConfig(targets=targets)
