"""Fits one network: to lists of blocks with relevance labels, or to labels of whole queries."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from compmem.gate import Network, best_windows
from compmem.schema import Vectors
from compmem_research.training.dense_gate.settings import DenseGateTraining
from compmem_research.training.dense_gate.states import Labels

_QUESTION_DECAY = 5e-2
"""Weight decay of the network of the question, since there are far fewer queries than blocks."""
_QUESTION_BATCH = 128
_UNKNOWN = -1.0


@dataclass(frozen=True, slots=True, eq=False)
class TrainingList:
    """A training list of blocks."""

    features: Vectors
    """`[windows, size]`."""
    rows: NDArray[np.int64]
    """The block of each window, from 0, ascending, `[windows]`."""
    relevant: Labels
    """`[blocks]`."""
    part: str
    """Weight; lists of a large part of a source count less."""


@dataclass(frozen=True, slots=True, eq=False)
class JudgedQuery:
    """A first pass over a whole query, for training."""

    features: Vectors
    """`[len(QUESTION_FEATURES)]`."""
    more: float
    """1 if later passes find what this one misses, 0 if that is not needed; -1 if unknown."""
    found: float
    """1 if anything answers, else 0."""
    part: str
    plain: bool
    """It is a pass of the loop, not one changed for training."""


def fit_lists(settings: DenseGateTraining, lists: Sequence[TrainingList], epochs: int, heads: int) -> Network:
    """A network that gives relevant blocks the highest logits; a block has the logit of its best window."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    network = Network(lists[0].features.shape[1], settings.hidden, heads=heads)
    every = torch.from_numpy(np.concatenate([item.features for item in lists]))
    network.fit_scale(every)
    ends = np.cumsum([len(item.rows) for item in lists])
    starts = ends - [len(item.rows) for item in lists]
    weights = torch.tensor(weights_of([item.part for item in lists]))
    batches = -(-len(lists) // settings.batch)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(epochs * batches, 2)
    )
    for _ in range(epochs):
        for chosen in np.array_split(rng.permutation(len(lists)), batches):
            sizes = [len(lists[i].relevant) for i in chosen]
            before = np.cumsum([0, *sizes])
            blocks = torch.from_numpy(np.concatenate([lists[i].rows + n for i, n in zip(chosen, before, strict=False)]))
            of = torch.repeat_interleave(torch.arange(len(chosen)), torch.tensor(sizes))
            relevant = torch.from_numpy(np.concatenate([lists[i].relevant for i in chosen]))
            logits = network.each(torch.cat([every[starts[i] : ends[i]] for i in chosen])).squeeze(-1)
            loss = list_loss(logits, blocks, relevant, of, weights[chosen], settings.probability)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


def list_loss(
    logits: Tensor, blocks: Tensor, relevant: Tensor, of: Tensor, weights: Tensor, probability: float
) -> Tensor:
    """For each list, the cross-entropy of its relevant blocks in a softmax over it, and that of each block separately.

    Lists are averaged by weight. The losses of heads are added, so each head is trained independently.

    Args:
        logits: `[heads, windows]`.
        blocks: The block of each window, `[windows]`.
        relevant: 1 for relevant blocks, `[blocks]`.
        of: The list of each block, `[blocks]`.
        weights: `[lists]`.
        probability: Weight of the second part.
    """
    heads, lists = len(logits), len(weights)
    best = torch.full((heads, len(relevant)), -torch.inf)
    best = best.scatter_reduce(1, blocks.expand(heads, -1), logits, "amax")
    none, index = torch.zeros(heads, lists), of.expand(heads, -1)
    alone = F.binary_cross_entropy_with_logits(best, relevant.expand(heads, -1), reduction="none")
    top = none.scatter_reduce(1, index, best.detach(), "amax", include_self=False)
    whole = top + torch.log(none.scatter_add(1, index, torch.exp(best - top[:, of])))
    lost = none.scatter_add(1, index, (whole[:, of] - best) * relevant)
    count = none[0].index_add(0, of, relevant).clamp(min=1)
    each = lost / count + probability * none.scatter_add(1, index, alone)
    return (each * weights).sum() / weights.sum()


def fit_judged(settings: DenseGateTraining, judged: Sequence[JudgedQuery], heads: int) -> Network:
    """A network that predicts for whole queries whether more passes help and whether anything answers."""
    torch.manual_seed(settings.seed)
    features = torch.from_numpy(np.stack([j.features for j in judged]))
    network = Network(features.shape[1], settings.hidden // 2, outputs=2, heads=heads)
    network.fit_scale(features)
    targets = torch.tensor([[j.more, j.found] for j in judged])
    weights = torch.tensor(weights_of([j.part for j in judged]))[:, None]
    batches = -(-len(judged) // _QUESTION_BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), settings.learning_rate, weight_decay=_QUESTION_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(settings.question_epochs * batches, 2)
    )
    for _ in range(settings.question_epochs):
        for chosen in torch.split(torch.randperm(len(judged)), _QUESTION_BATCH):
            logits, wanted = network.each(features[chosen]), targets[chosen]
            lost = F.binary_cross_entropy_with_logits(logits, wanted.clamp(min=0).expand_as(logits), reduction="none")
            known = (wanted != _UNKNOWN) * weights[chosen]
            optimizer.zero_grad()
            ((lost * known).sum() / weights[chosen].sum()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return network.eval()


@torch.inference_mode()
def block_logits(network: Network, features: Vectors, rows: NDArray[np.int64]) -> tuple[Vectors, NDArray[np.int64]]:
    """The logit of each block of a list and the window that has it, `[blocks]` each."""
    return best_windows(network(torch.from_numpy(features)).squeeze(-1).numpy(), rows)


def weights_of(parts: Sequence[str]) -> list[float]:
    """A weight for each item, so that a part counts as the square root of its size."""
    counts = Counter(parts)
    return [counts[p] ** -0.5 for p in parts]
