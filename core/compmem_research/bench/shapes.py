"""Backbones of a named shape with random weights, for measurements that do not depend on trained weights."""

from typing import Any

import torch

from compmem.backbone import Backbone, MemoryConfig

SHAPES: dict[str, dict[str, int]] = {
    "tiny-8x256": {
        "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 8192,
    },
    "qwen2.5-0.5b": {
        "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936,
    },
    "qwen2.5-7b": {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
        "num_key_value_heads": 4, "vocab_size": 152064,
    },
}  # fmt: skip

POSITIONS = 1 << 21


def random_backbone(shape: str, *, device: str, dtype: str, ratio: int) -> Backbone:
    """A Qwen2 of this shape with memory tokens and a gate head, all untrained.

    Raises:
        ValueError: The shape is unknown, or the device is not available.
    """
    if shape not in SHAPES:
        raise ValueError(f"shape={shape!r} must be one of {', '.join(SHAPES)}")
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: torch sees no CUDA device here; use device='cpu'")
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "qwen2", **SHAPES[shape], max_position_embeddings=POSITIONS, tie_word_embeddings=False, sliding_window=None,
        bos_token_id=None, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype)).eval()  # type: ignore[no-untyped-call]
    model.generation_config.eos_token_id = None
    backbone = Backbone.from_model(model, _tokenizer())
    backbone.add_memory(MemoryConfig(ratio=ratio))
    backbone.decoder.to(device)
    backbone.add_gate()
    return backbone


def _tokenizer() -> Any:
    """A tokenizer with bytes as tokens, since no measurement depends on it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<|pad|>", "<|turn|>", "<|end|>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped: Any = PreTrainedTokenizerFast
    return wrapped(tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|pad|>")  # noqa: S106
