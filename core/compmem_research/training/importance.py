"""Fit what predicts the importance of KV states: KVzap (2601.07891) with a linear model.

KVzip scores a state by the attention it gets while the model repeats the text, which takes two more passes over it. The
scores of a few hundred passages suffice to predict them: ridge regression of their logarithm on the queries of the same
layer and token, in closed form. It fits a stock model, or a trained memory adapter whose states are chosen by KVzip.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from compmem.backbone import Backbone, chunk_ids
from compmem.config import SHARED_BUDGET_METHODS
from compmem.naming import absolute_path
from compmem.readers import LatentPrompts
from compmem.schema import Chunk, KVStates
from compmem_research.tasks.multihop import read_corpus
from compmem_research.training.engine.device import precision
from compmem_research.training.engine.trainer import BACKBONE

logger = logging.getLogger(__name__)

MIN_SCORE = 1e-6
"""Scores are raised to this value before the logarithm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportanceTraining:
    """Settings of the fit.

    Raises:
        ValueError: A value is out of its range.
    """

    start: Path
    """Folder, file or name of the backbone."""
    out: Path
    """Folder of the run; `backbone` in it has what is added to the stock model."""
    file: Path
    """A multi-hop set, whose passages are read; see `compmem_research.tasks.multihop`."""
    passages: int = 300
    """Passages that are fitted."""
    held: int = 40
    """Other passages that are measured."""
    chunk_tokens: int = 256
    """Most tokens of a passage."""
    at_once: int = 4
    """Passages of one forward pass."""
    ridge: float = 0.1
    """Penalty of the standardised weights, relative to the number of tokens."""
    ratio: int | None = None
    """Compression ratio of the measurement. None: the checkpoint's own."""
    seed: int = 0
    device: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        if min(self.passages, self.held, self.chunk_tokens, self.at_once) < 1 or self.ridge <= 0:
            raise ValueError("passages, held, chunk_tokens and at_once must be at least 1, ridge above 0")
        if self.ratio is not None and self.ratio < 2:
            raise ValueError(f"ratio={self.ratio} must be at least 2: at 1 all states are kept")


def train(settings: ImportanceTraining) -> dict[str, Any]:
    """Fit, measure and save; returns the metrics on the held-out passages.

    Raises:
        CheckpointError: The backbone cannot be loaded.
        ValueError: The file has a broken line or too few passages, or the states were trained for another choice.
    """
    began = time.monotonic()
    backbone = Backbone.load(settings.start, device=settings.device, dtype=settings.dtype)
    if backbone.memory.trained and backbone.memory.pruning not in SHARED_BUDGET_METHODS:
        raise ValueError(f"{str(settings.start)!r} was not trained on states that {SHARED_BUDGET_METHODS[0]} chooses")
    drawn = _passages(settings, backbone)
    fit = Fit()
    for number, (features, scores) in enumerate(_examples(backbone, drawn[: settings.passages], settings.at_once)):
        fit.add(features, scores.clamp_min(MIN_SCORE).log())
        if (number + 1) % 50 == 0:
            logger.info("%d passages read in %.0f s", number + 1, time.monotonic() - began)
    backbone.set_importance(fit.weights(settings.ridge))
    figures = _measured(backbone, drawn[settings.passages :], settings)
    base = backbone.base if backbone.base is not None else absolute_path(str(settings.start))
    folder = settings.out / BACKBONE
    backbone.save(folder, base=base)
    LatentPrompts.from_backbone(backbone).write(folder)
    report = {"passages": settings.passages, "tokens": fit.tokens, "seconds": round(time.monotonic() - began, 1)}
    logger.info("%s", report | figures)
    return report | figures


class Fit:
    """Ridge regression of every layer, from sums over the tokens."""

    def __init__(self) -> None:
        self.tokens = 0
        self._sums: list[Tensor] = []

    def add(self, features: Tensor, wanted: Tensor) -> None:
        """Take in one text.

        Args:
            features: `[layers, tokens, features]`.
            wanted: `[layers, kv_heads, tokens]`.
        """
        one = features.double()
        own = torch.cat((one, torch.ones_like(one[..., :1])), dim=2)
        sums = [own.transpose(1, 2) @ own, own.transpose(1, 2) @ wanted.double().transpose(1, 2)]
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)] if self._sums else sums
        self.tokens += features.shape[1]

    def weights(self, ridge: float) -> Tensor:
        """The weights `[layers, kv_heads, features + 1]`, the bias last; the penalty is of standardised features."""
        moments, products = (total / self.tokens for total in self._sums)
        mean, level = moments[:, :-1, -1:], products[:, -1:]
        covariance = moments[:, :-1, :-1] - mean @ mean.transpose(1, 2)
        spread = covariance.diagonal(dim1=1, dim2=2).clamp_min(1e-12).sqrt()[:, :, None]
        scaled = covariance / (spread * spread.transpose(1, 2))
        scaled.diagonal(dim1=1, dim2=2).add_(ridge)
        slopes = torch.linalg.solve(scaled, (products[:, :-1] - mean @ level) / spread) / spread
        bias = level - mean.transpose(1, 2) @ slopes
        return torch.cat((slopes, bias), dim=1).transpose(1, 2).float()


def _passages(settings: ImportanceTraining, backbone: Backbone) -> list[list[int]]:
    """Token ids of distinct passages, those to fit first."""
    passages = read_corpus(settings.file).passages
    wanted = settings.passages + settings.held
    if len(passages) < wanted:
        raise ValueError(f"{settings.file}: {len(passages)} passages are fewer than the {wanted} that are wanted")
    order = np.random.default_rng(settings.seed).permutation(len(passages))[:wanted].tolist()
    chunks = [Chunk(text=passages[n].text, title=passages[n].title) for n in order]
    return [chunk_ids(backbone, chunk)[: settings.chunk_tokens] for chunk in chunks]


def _examples(
    backbone: Backbone, chunks: Sequence[Sequence[int]], at_once: int
) -> Iterator[tuple[Tensor, Tensor]]:  # fmt: skip
    for start in range(0, len(chunks), at_once):
        with precision(backbone):
            yield from backbone.importance_examples(chunks[start : start + at_once])


def _measured(backbone: Backbone, chunks: Sequence[Sequence[int]], settings: ImportanceTraining) -> dict[str, Any]:
    """Mean correlation within a head with the held-out scores; share of KVzip's states that are kept too; seconds."""
    weights, ratio = backbone.decoder.importance, settings.ratio or max(2, backbone.memory.ratio)
    assert weights is not None, "it was fitted"
    alike, kept, seconds = list[float](), list[float](), [0.0, 0.0]
    for features, scores in _examples(backbone, chunks, settings.at_once):
        made = torch.einsum("ltf,lhf->lht", features.float(), weights[..., :-1].float()) + weights[..., -1:].float()
        pairs = torch.stack((made, scores.clamp_min(MIN_SCORE).log()))
        apart = pairs - pairs.mean(dim=-1, keepdim=True)
        alike.append(float(cosine_similarity(apart[0], apart[1], dim=-1).mean()))
    with torch.no_grad(), precision(backbone):
        for start in range(0, len(chunks), settings.at_once):
            group = chunks[start : start + settings.at_once]
            chosen = []
            for number, pruning in enumerate(SHARED_BUDGET_METHODS):
                begun = time.perf_counter()
                chosen.append(backbone.compress(group, ratio=ratio, pruning=pruning))
                seconds[number] += time.perf_counter() - begun
            kept += [_shared(*pair) for pair in zip(*chosen, strict=True)]
    return {
        "held_correlation": round(float(np.mean(alike)), 4),
        "held_overlap": round(float(np.mean(kept)), 4),
        "held_ratio": ratio,
        "held_seconds": dict(zip(SHARED_BUDGET_METHODS, (round(s, 2) for s in seconds), strict=True)),
    }


def _shared(wanted: KVStates, made: KVStates) -> float:
    """Share of the wanted states of a chunk that were kept."""
    return len(_places(wanted) & _places(made)) / len(_places(wanted))


def _places(states: KVStates) -> set[tuple[int, int]]:
    """Head, counted over all layers, and token of each state of a chunk that was not kept whole."""
    if states.positions is None or states.lengths is None:
        return {(0, 0)}
    heads = torch.arange(states.lengths.numel()).repeat_interleave(states.lengths.flatten())
    return set(zip(heads.tolist(), states.positions.tolist(), strict=True))
