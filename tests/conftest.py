"""Tiny real models, made for the tests: two layers, grouped heads, random weights, a byte-level tokenizer."""

import os
import runpy
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is loaded: several workers with threads each only wait
    os.environ.setdefault("OMP_NUM_THREADS", "1")

EXAMPLES = Path(__file__).parent.parent / "examples"
CHAT = (
    "{% for m in messages %}<|turn|>{{ m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant\n{% endif %}"
)


def make_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<|pad|>", "<|turn|>", "<|end|>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|pad|>", "<|turn|>", "<|end|>"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")
    wrapped.chat_template = CHAT
    return wrapped


def make_model(family="qwen2", *, seed=0, **changes):
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "vocab_size": 259, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.2, "sliding_window": None,
        "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0, "head_dim": 16,
    }  # fmt: skip
    config = AutoConfig.for_model(family, **{**settings, **changes})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.fixture(scope="session", autouse=True)
def encoders_stay_loaded():
    """An encoder is loaded once, and not again for each test."""
    from compmem.encoder import loading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "_loaded", {})
        yield


@pytest.fixture
def run_example(monkeypatch, capsys):
    """Run a file of `examples/` as it is and return what it printed; keywords are environment variables."""

    def run(name, **variables):
        for variable in [v for v in os.environ if v.startswith("OPENAI")]:
            monkeypatch.delenv(variable)
        for variable, value in ({"HF_HUB_OFFLINE": "1", "LANGSMITH_TRACING": "false"} | variables).items():
            monkeypatch.setenv(variable, value)
        capsys.readouterr()
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return make_tokenizer()


@pytest.fixture
def tiny_model():
    """Factory of tiny causal LMs: `tiny_model("qwen3", num_hidden_layers=3)`."""
    return make_model


@pytest.fixture
def tiny_backbone(tiny_tokenizer):
    """Factory of backbones over tiny models: `tiny_backbone("llama", memory=MemoryConfig(...))`."""

    def make(family="qwen2", *, memory=None, **changes):
        import torch

        from compmem.backbone import Backbone

        backbone = Backbone.from_model(make_model(family, **changes), tiny_tokenizer)
        if memory is not None:
            backbone.add_memory(memory)
            with torch.random.fork_rng(), torch.no_grad():
                torch.manual_seed(1)
                for parameter in backbone.parameters("memory").values():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        return backbone

    return make


@pytest.fixture
def saved_model(tmp_path, tiny_tokenizer):
    """Factory of folders with a tiny model and its tokenizer: `saved_model("mistral")`."""

    def save(family="qwen2", **changes):
        folder = tmp_path / family
        make_model(family, **changes).save_pretrained(folder)
        tiny_tokenizer.save_pretrained(folder)
        return folder

    return save
