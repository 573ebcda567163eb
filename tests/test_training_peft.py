"""Adapters go to the peft library and come back from it."""

import pytest
import torch

from compmem.backbone import AdapterConfig, Backbone
from compmem.errors import CheckpointError

IDS = [[5, 9, 77, 30, 12, 200]]


def stir(parameters):
    with torch.no_grad():
        for number, parameter in enumerate(parameters):
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.1


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_peft_loads_an_adapter_written_here(tmp_path, tiny_backbone, tiny_model, family):
    from peft import PeftModel

    backbone = tiny_backbone(family)
    backbone.add_adapter("reasoner", AdapterConfig(rank=3, alpha=12.0, targets=("q", "o", "gate", "down")))
    stir(backbone.parameters("reasoner").values())
    backbone.save_adapter("reasoner", tmp_path, base="some/model")
    peft = PeftModel.from_pretrained(tiny_model(family), str(tmp_path))
    assert peft.active_peft_config.base_model_name_or_path == "some/model"
    with torch.no_grad():
        ours = backbone.logits(backbone.read(IDS))
        assert torch.allclose(peft(torch.tensor(IDS)).logits, ours, atol=1e-4)
        assert not torch.allclose(tiny_model(family)(torch.tensor(IDS)).logits, ours, atol=1e-2)


def test_an_adapter_of_peft_is_loaded_here_and_written_as_it_was(tmp_path, tiny_model, tiny_tokenizer):
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file

    config = LoraConfig(r=2, lora_alpha=8, target_modules=["v_proj", "up_proj"], task_type="CAUSAL_LM")
    peft = get_peft_model(tiny_model("qwen2"), config).eval()
    stir(p for name, p in peft.named_parameters() if "lora_" in name)
    peft.save_pretrained(str(tmp_path / "peft"))
    backbone = Backbone.of(tiny_model("qwen2"), tiny_tokenizer)
    backbone.load_adapter("gate", tmp_path / "peft")
    with torch.no_grad():
        ours = backbone.logits(backbone.read(IDS, role="gate"))
        assert torch.allclose(peft(torch.tensor(IDS)).logits, ours, atol=1e-4)
    backbone.save_adapter("gate", tmp_path / "again")
    first, again = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("peft", "again"))
    assert set(first) == set(again)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_role_without_adapter_has_nothing_to_write(tmp_path, tiny_backbone):
    with pytest.raises(CheckpointError, match="'reasoner' has no adapter"):
        tiny_backbone().save_adapter("reasoner", tmp_path)
