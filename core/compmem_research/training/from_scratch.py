"""A small backbone from scratch: a byte-level tokenizer trained on texts, and a decoder with random weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.nn import Linear

from compmem.backbone import Backbone

PAD, SYSTEM, USER, ASSISTANT, END = CONTROL = ("<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
"""Control tokens; a text that spells one is encoded as letters."""

REPLY_TAGS: Final = (
    "<check>", "</check>", "<update>", "</update>", "<next>", "</next>",
)  # fmt: skip
"""Tags of a structured reply: one token each, and ordinary text."""

TEMPLATE: Final = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """The shape of a decoder made from scratch.

    Raises:
        ValueError: A value is out of its range.
    """

    hidden: int = 384
    layers: int = 8
    heads: int = 6
    kv_heads: int = 2
    head_dim: int = 64
    inner: int = 1024
    """Width of the feed-forward layers."""
    context: int = 4096
    """Most positions."""
    rope_theta: float = 10_000.0
    """Base of the rotary positions' wavelengths."""

    def __post_init__(self) -> None:
        for name in ("hidden", "layers", "heads", "kv_heads", "head_dim", "inner", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: rotary positions turn pairs")


def train_tokenizer(texts: Iterable[str], vocabulary: int, *, words: Sequence[str] = REPLY_TAGS) -> Any:
    """A byte-level BPE tokenizer with single digits and a chat template.

    Args:
        texts: Training texts.
        vocabulary: Its size, including control tokens and `words`.
        words: Strings that are one token each.

    Raises:
        ValueError: The vocabulary is too small for the bytes.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocabulary < len(alphabet) + len(CONTROL) + len(words):
        raise ValueError(f"vocabulary={vocabulary} has no room for {len(alphabet)} bytes and the tokens added")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(words),
        special_tokens=list(CONTROL),
        initial_alphabet=sorted(alphabet),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in words])
    return wrap_tokenizer(tokenizer)


def wrap_tokenizer(tokenizer: Any) -> Any:
    """A tokenizer of `train_tokenizer` in the form that a backbone needs."""
    from transformers import PreTrainedTokenizerFast

    wrapped: Any = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)  # type: ignore[no-untyped-call]
    wrapped.chat_template = TEMPLATE
    return wrapped


def untrained_backbone(
    config: DecoderConfig, tokenizer: Any, *, seed: int = 0, device: str | torch.device | None = None
) -> Backbone:
    """A backbone with random weights. Device None: the CPU."""
    return Backbone.from_model(untrained_model(config, tokenizer, seed=seed).to(device or "cpu"), tokenizer)


def untrained_model(config: DecoderConfig, tokenizer: Any, *, seed: int = 0) -> Any:
    """A decoder of the Qwen3 family with random weights and tied embeddings, on the CPU in float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden,
        intermediate_size=config.inner,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = Qwen3ForCausalLM(settings)
        _scale_outputs(model, config.layers)
    return model.eval()


def _scale_outputs(model: Any, layers: int) -> None:
    """The outputs of each layer start small, so that the sum over layers does not grow with their number (GPT-2)."""
    with torch.no_grad():
        for layer in model.model.layers:
            for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
                assert isinstance(linear, Linear)
                linear.weight.mul_((2 * layers) ** -0.5)
