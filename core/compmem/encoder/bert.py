"""BERT sentence encoders, run without transformers: in floats on any device, in 8 bits on CPUs where that is faster.

The ranges for the 8-bit layers come from one pass over a fixed text and random tokens at load time.
"""

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from compmem.devices import device_of, dtype_of
from compmem.encoder.layers import (
    BatchLayout,
    FloatLayer,
    Int8Layer,
    Layer,
    LayerWeights,
    Ranges,
    layer_norm,
    layers_of,
)
from compmem.encoder.merged_calls import MergedCalls
from compmem.encoder.prompts import Prompts, prompts_of
from compmem.encoder.spans import TextWithSpans, Window, encode_spans_separately, windows
from compmem.errors import CheckpointError
from compmem.locks import after_fork
from compmem.schema import Vectors

logger = logging.getLogger(__name__)

_CALIBRATION = """The lease of the warehouse ends on 31 December 2026; until then Acme pays the insurance. Who pays it \
afterwards?
Marie Curie (1867-1934) won two Nobel Prizes, one in physics and one in chemistry. She was born in Warsaw.
def read(path: str, *, encoding="utf-8") -> list[str]: return open(path).read().split("\\n")
Die Versicherung zahlt der Mieter, z. B. bei Brand oder Wasser.
보험료는 임차인이 냅니다. 保険料は借主が払います。 保险费由承租人支付。
"It costs $3.50!", she said: 1, 2, 3... and left; see https://example.com/a?b=c&d=e [12].
what
Raised when an operation would block, for example a read from a socket set to non-blocking mode. The argument is \
ignored if it is None. Changed in version 3.11: returns a tuple of integers instead of a string."""
_MIN_INT8_COSINE = 0.998
_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
_MIN_SPLIT_TOKENS = 256
"""Tokens of a batch that is not divided among the cores: passing it to other threads takes longer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BertSettings:
    """Settings in the folder of a BERT sentence encoder."""

    dim: int
    heads: int
    layers: int
    eps: float
    max_tokens: int
    pooling: Literal["mean", "cls"]
    prompts: Prompts

    @classmethod
    def read(cls, folder: Path, name: str) -> "BertSettings | None":
        """Settings of a plain BERT that pools by mean or first token; None for any other model.

        Args:
            folder: A sentence-transformers model folder.
            name: Name of the model; it determines the prompts if the folder does not.
        """
        try:
            return cls._read(folder, name)
        except (OSError, ValueError, TypeError, AttributeError, KeyError):
            return None  # sentence-transformers, which loads all others, says what is wrong

    @classmethod
    def _read(cls, folder: Path, name: str) -> "BertSettings | None":
        config, modules, sentence, pooling, saved, tokenizer = (
            json.loads((folder / name).read_text("utf-8"))
            for name in (
                "config.json", "modules.json", "sentence_bert_config.json",
                "1_Pooling/config.json", "config_sentence_transformers.json", "tokenizer_config.json",
            )
        )  # fmt: skip
        kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
        modes = {key for key, on in pooling.items() if key.startswith("pooling_mode_") and on is True}
        plain = (
            config.get("model_type") == "bert"
            and config.get("hidden_act") == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute"
            and kinds in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"])
            and modes in ({"pooling_mode_mean_tokens"}, {"pooling_mode_cls_token"})
            and not sentence.get("do_lower_case")
            and pooling.get("include_prompt", True)
            and (folder / "model.safetensors").exists()
            and (folder / "tokenizer.json").exists()
        )
        if not plain:
            return None
        places = config["max_position_embeddings"]
        limit = sentence.get("max_seq_length") or tokenizer.get("model_max_length") or places
        return cls(
            dim=config["hidden_size"],
            heads=config["num_attention_heads"],
            layers=config["num_hidden_layers"],
            eps=config["layer_norm_eps"],
            max_tokens=min(limit, places),
            pooling="mean" if "pooling_mode_mean_tokens" in modes else "cls",
            prompts=prompts_of(name, saved.get("prompts")),
        )


def _files(folder: Path, device: torch.device) -> tuple[Any, dict[str, Tensor]]:
    """Tokenizer and weights."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return tokenizer, load_file(folder / "model.safetensors", device=str(device))
    except Exception as error:  # the libraries have no exception of their own for a damaged file
        raise CheckpointError(f"the encoder in {str(folder)!r} cannot be read: {error}") from error


class Bert:
    """A BERT sentence encoder, which runs texts of similar length in batches.

    Args:
        folder: A sentence-transformers model folder.
        settings: The settings in the folder.
        device: Torch device. None: CUDA if available, else the CPU.
        dtype: Name of a torch dtype, `"int8"` for 8-bit layers. None: the fastest one that gives the same vectors.

    Raises:
        CheckpointError: Tokenizer or weights are damaged, or not those of the settings.
    """

    def __init__(self, folder: Path, settings: BertSettings, device: str | None, dtype: str | None) -> None:
        self.settings = settings
        self._device = device_of(device)
        self._tokenizer, raw = _files(folder, self._device)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._end: int = self._tokenizer.encode("").ids[-1]
        self._queries = MergedCalls(partial(self._encode, settings.prompts.query), self._max_concurrent_passes)
        weights = {k.removeprefix("bert."): v.float() for k, v in raw.items() if v.is_floating_point()}
        kind = dtype or (_fastest_cpu_dtype() if self._device.type == "cpu" else "float16")
        with torch.inference_mode():
            number = torch.float32 if kind == "int8" else dtype_of(kind)
            weights = {k: v.to(number) for k, v in weights.items()}
            try:
                self._word_embeddings = weights["embeddings.word_embeddings.weight"]
                kinds = weights["embeddings.token_type_embeddings.weight"]
                self._position_embeddings = weights["embeddings.position_embeddings.weight"] + kinds[0]
                layers, self._last_norm = layers_of(weights, settings.layers)
            except KeyError as error:
                raise CheckpointError(f"the encoder in {str(folder)!r} has no weights {error}") from error
            self._layers: list[Layer] = [FloatLayer(layer) for layer in layers]
            self.dtype = kind
            if kind == "int8":
                self._quantise(layers, required=dtype is not None)

    def _quantise(self, layers: Sequence[LayerWeights], *, required: bool) -> None:
        """Use 8-bit layers, unless they change the vectors and the caller did not ask for them."""
        plain, before = self._probe(), self._layers
        ranges = self._ranges(layers)
        self._layers = [Int8Layer(layer, found) for layer, found in zip(layers, ranges, strict=True)]
        similarity = float((plain * self._probe()).sum(1).mean())
        if similarity < _MIN_INT8_COSINE and not required:
            logger.info("8-bit layers give vectors of cosine %.4f with this model; using fp32", similarity)
            self._layers, self.dtype = before, "float32"

    def _probe(self) -> Tensor:
        vectors = self._encode("", _CALIBRATION.split("\n"))
        return F.normalize(torch.from_numpy(vectors), dim=1)

    def _ranges(self, layers: Sequence[LayerWeights]) -> list["Ranges"]:
        """The range of each layer's inputs over the calibration text and random tokens."""
        words = torch.Generator().manual_seed(0)
        start = self._tokenizer.encode("").ids[0]
        rows = [
            [start, *row, self._end]
            for row in torch.randint(1000, len(self._word_embeddings), (12, 48), generator=words).tolist()
        ]
        rows += self._ids([_CALIBRATION, *_CALIBRATION.split("\n")])
        found = [Ranges() for _ in layers]
        for row in rows:
            x, shape, _ = self._embed([row])
            for layer, ranges in zip(layers, found, strict=True):
                x = FloatLayer(layer, ranges)(x, shape)
        return found

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of documents `[texts, dim]`, not normalised."""
        return self._encode(self.settings.prompts.document, texts)

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions `[texts, dim]`, not normalised; several threads' are encoded together."""
        return self._queries(texts)

    def _max_concurrent_passes(self) -> int:
        """How many passes may run at once: as many as their threads fill the cores of a CPU, or one on a GPU."""
        return max(1, (os.cpu_count() or 1) // torch.get_num_threads()) if self._device.type == "cpu" else 1

    def _encode(self, prompt: str, texts: Sequence[str]) -> Vectors:
        limit = self.settings.max_tokens
        rows = [ids if len(ids) <= limit else [*ids[: limit - 1], self._end] for ids in self._ids(texts, prompt)]
        out = np.empty((len(rows), self.settings.dim), dtype=np.float32)

        def run(batch: list[int]) -> None:
            with torch.inference_mode():
                out[batch] = self._forward([rows[i] for i in batch]).float().cpu().numpy()

        self._in_batches(rows, run)
        return out

    def _in_batches(self, rows: Sequence[Sequence[int]], run: Callable[[list[int]], None]) -> None:
        """Runs batches of row numbers; on a CPU several at once, one per core."""
        lengths = [len(r) for r in rows]
        budget = _BATCH_TOKENS.get(self._device.type, 8192)
        cores = torch.get_num_threads() if self._device.type == "cpu" else 1
        if cores > 1:
            budget = min(budget, max(_MIN_SPLIT_TOKENS, -(-sum(lengths) // cores)))
        batches = _batches(lengths, budget)
        if cores > 1 and len(batches) > 1:
            list(_workers(cores).map(run, batches))
            return
        for batch in batches:
            run(batch)

    def encode_with_spans(self, texts: Sequence[TextWithSpans]) -> list[Vectors]:
        """Vectors `[1 + spans, dim]` of each text and its spans, pooled from one forward pass, not normalised."""
        if self.settings.pooling == "cls":
            return encode_spans_separately(self.encode, texts)
        rows, places = self._windows(texts)
        pooled: list[Vectors] = [np.empty(0, dtype=np.float32)] * len(rows)

        def run(batch: list[int]) -> None:
            with torch.inference_mode():
                states = self._states([rows[i] for i in batch])[0].float().cpu().numpy()
            for state, i in zip(states, batch, strict=True):
                _, shift, window = places[i]
                held = [state[first + shift : last + shift].sum(0) for _, first, last in window.spans]
                pooled[i] = np.stack([state[: len(rows[i])].sum(0), *held])

        self._in_batches(rows, run)
        sums = [np.zeros((1 + len(text.spans), self.settings.dim), dtype=np.float32) for text in texts]
        for (number, _, window), found in zip(places, pooled, strict=True):
            sums[number][0] += found[0]
            for (span, _, _), row in zip(window.spans, found[1:], strict=True):
                sums[number][1 + span] += row
        for found in sums:  # a span whose characters the tokenizer drops gets the vector of the whole text
            found[~found.any(axis=1)] = found[0]
        return sums

    def _windows(self, texts: Sequence[TextWithSpans]) -> tuple[list[list[int]], list[tuple[int, int, Window]]]:
        """Token rows, and for each the number of its text, the offset of its tokens, and its window."""
        start, end = self._tokenizer.encode("").ids
        limit = self.settings.max_tokens - 2
        heads = self._tokenizer.encode_batch(
            [self.settings.prompts.document + text.head for text in texts], add_special_tokens=False
        )
        tokenized = self._tokenizer.encode_batch([text.text for text in texts], add_special_tokens=False)
        rows: list[list[int]] = []
        places: list[tuple[int, int, Window]] = []
        for number, (text, head, tokens) in enumerate(zip(texts, heads, tokenized, strict=True)):
            head_ids = [start, *head.ids[: limit // 2]]
            for window in windows(tokens.offsets, text, limit + 1 - len(head_ids)):
                rows.append([*head_ids, *tokens.ids[window.first : window.last], end])
                places.append((number, len(head_ids) - window.first, window))
        return rows, places

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each document, with special tokens and prompt."""
        return [len(ids) for ids in self._ids(texts, self.settings.prompts.document)]

    def _ids(self, texts: Sequence[str], prompt: str = "") -> list[list[int]]:
        out: list[list[int]] = []
        for at in range(0, len(texts), 1024):
            out.extend(
                e.ids for e in self._tokenizer.encode_batch_fast([prompt + text for text in texts[at : at + 1024]])
            )
        return out

    def _embed(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, BatchLayout, Tensor]:
        """Sums before the first norm, their shape, and a mask of token positions `[rows, width]`."""
        lengths = [len(r) for r in rows]
        width = max(lengths)
        ids = torch.tensor([[*r, *[0] * (width - len(r))] for r in rows], device=self._device)
        keep = torch.arange(width) < torch.tensor(lengths)[:, None]
        mask = None
        if min(lengths) < width:
            mask = torch.zeros(len(rows), 1, 1, width, dtype=self._word_embeddings.dtype)
            mask = mask.masked_fill_(~keep[:, None, None], -torch.inf).to(self._device)
        x = (self._word_embeddings[ids] + self._position_embeddings[:width]).flatten(0, 1)
        shape = BatchLayout(rows=len(rows), width=width, heads=self.settings.heads, eps=self.settings.eps, mask=mask)
        return x, shape, keep.to(self._device)

    def _states(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Token states `[rows, width, dim]`, and a mask of those that belong to a text `[rows, width]`."""
        x, shape, keep = self._embed(rows)
        for layer in self._layers:
            x = layer(x, shape)
        return layer_norm(x, self._last_norm, shape).view(shape.rows, shape.width, -1), keep

    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        x, keep = self._states(rows)
        kept = keep[..., None]
        pooled: Tensor = x[:, 0] if self.settings.pooling == "cls" else (x.float() * kept).sum(1) / kept.sum(1)
        return pooled


@cache
def _workers(count: int) -> ThreadPoolExecutor:
    """Threads of one core each: parallel batches wait less than parallel matrix products."""
    pool = ThreadPoolExecutor(count, "compmem-encoder", initializer=torch.set_num_threads, initargs=(1,))
    started = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(started.wait)
    started.wait()
    # A torch thread that starts later takes the thread count that was set last, in any thread.
    torch.set_num_threads(count)
    return pool


after_fork(_workers.cache_clear)  # a forked process has no threads of its parent


def _batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Numbers of the texts in batches of similar length, at most `budget` tokens with padding, longest first."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batches and (len(batches[-1]) + 1) * lengths[batches[-1][0]] <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def _fastest_cpu_dtype() -> str:
    """The fastest type of linear layers on this CPU: int8 if it has instructions for products of bytes."""
    return "int8" if torch.cpu._is_avx2_supported() else "float32"
