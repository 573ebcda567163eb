"""The shape of a decoder, and the number of parameters of each part."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

from compmem.backbone import AdapterConfig, Linear


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """The sizes in a stock model's `config.json`."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    tied: bool
    """Whether the head shares the embedding's weights."""
    biased: bool
    """Whether query, key and value projections have a bias (Qwen2)."""
    normed_heads: bool
    """Whether queries and keys have their own norms (Qwen3)."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Shape":
        """The shape in the content of a `config.json`.

        Raises:
            ValueError: Something is missing.
        """
        try:
            heads, hidden = config["num_attention_heads"], config["hidden_size"]
            return cls(
                vocabulary=config["vocab_size"],
                hidden=hidden,
                layers=config["num_hidden_layers"],
                heads=heads,
                kv_heads=config.get("num_key_value_heads") or heads,
                head_dim=config.get("head_dim") or hidden // heads,
                inner=config["intermediate_size"],
                tied=bool(config.get("tie_word_embeddings", False)),
                biased=config.get("model_type") == "qwen2",
                normed_heads=config.get("model_type") == "qwen3",
            )
        except KeyError as error:
            raise ValueError(f"the model's config lacks {error}") from error

    @classmethod
    def find(cls, model: str | Path) -> "Shape":
        """The shape of a model in a folder, or of a model known by name.

        Raises:
            ValueError: There is no such folder, and the name is not known.
        """
        file = Path(model) / "config.json"
        if file.is_file():
            return cls.of(json.loads(file.read_text(encoding="utf-8")))
        name = Path(model).name
        if name not in KNOWN:
            raise ValueError(f"no config.json in {str(model)!r}, and of the known models none is {name!r}: {[*KNOWN]}")
        return KNOWN[name]

    @property
    def parameters(self) -> int:
        """Number of parameters of the stock model."""
        heads = 2 * self.head_dim if self.normed_heads else 0
        layer = sum(self.linear(name) for name in get_args(Linear)) + 2 * self.hidden + heads
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.layers * layer + self.hidden

    def sides(self, name: Linear) -> tuple[int, int]:
        """Inputs and outputs of a linear layer."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q": (self.hidden, wide), "k": (self.hidden, narrow), "v": (self.hidden, narrow), "o": (wide, self.hidden),
            "gate": (self.hidden, self.inner), "up": (self.hidden, self.inner), "down": (self.inner, self.hidden),
        }[name]  # fmt: skip

    def linear(self, name: Linear) -> int:
        """Parameters of a linear layer, with its bias."""
        inputs, outputs = self.sides(name)
        return inputs * outputs + (outputs if self.biased and name in ("q", "k", "v") else 0)

    def memory(self, own: Collection[Linear]) -> int:
        """Parameters that memory tokens add: an embedding, and their own projections."""
        return self.hidden + self.layers * sum(map(self.linear, own))

    def adapter(self, config: AdapterConfig | None) -> int:
        """Parameters of an adapter."""
        if config is None:
            return 0
        return self.layers * config.rank * sum(sum(self.sides(name)) for name in config.targets)

    def kv_bytes(self, each: int) -> int:
        """Bytes of one token's keys and values, for numbers of this many bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * each


KNOWN: Final[Mapping[str, Shape]] = {
    "Qwen2.5-7B-Instruct": Shape(
        vocabulary=152064, hidden=3584, layers=28, heads=28, kv_heads=4, head_dim=128, inner=18944, tied=False,
        biased=True, normed_heads=False,
    ),
    "Qwen3-4B": Shape(
        vocabulary=151936, hidden=2560, layers=36, heads=32, kv_heads=8, head_dim=128, inner=9728, tied=True,
        biased=False, normed_heads=True,
    ),
}  # fmt: skip
"""From their `config.json` on the Hugging Face hub, for an estimate before they are downloaded."""
