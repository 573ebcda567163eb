"""Calibration of a classifier's logits, and choice of its threshold."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def platt(logits: Tensor, labels: Tensor, *, decay: float = 1e-4) -> tuple[float, float]:
    """Slope and bias that turn logits into those of probabilities, by maximum likelihood (Platt scaling).

    Args:
        logits: `[n]`.
        labels: `[n]`.
        decay: A little weight decay keeps the slope finite if the labels are separable.
    """
    scale = torch.tensor([1.0, 0.0], dtype=torch.float64)
    scores, wanted = logits.double().cpu(), labels.double().cpu()
    if wanted.min() == wanted.max():
        # With equal labels, the bias would go to infinity.
        return 1.0, 0.0
    with torch.enable_grad():
        scale.requires_grad_()
        optimizer = torch.optim.LBFGS([scale], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = binary_cross_entropy_with_logits(scale[0] * scores + scale[1], wanted)
            loss = loss + decay * scale.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        optimizer.step(closure)  # type: ignore[no-untyped-call]
    slope, bias = scale.tolist()
    return slope, bias


def auc(scores: Tensor, labels: Tensor) -> float:
    """Probability that a true item scores above a false one, ties count half; 0.5 if one kind is missing."""
    true, false = scores[labels.bool()].double(), scores[~labels.bool()].double().sort().values
    if not len(true) or not len(false):
        return 0.5
    below = torch.searchsorted(false, true, right=False) + torch.searchsorted(false, true, right=True)
    return float(below.double().mean()) / (2 * len(false))


def threshold_for(probabilities: Tensor, labels: Tensor, recall: float) -> float:
    """The highest threshold up to 0.5 that accepts at least this share of the true items.

    Above 0.5 there is no reason to reject: such an item is more likely true than not.
    """
    true = probabilities[labels.bool()].sort(descending=True).values
    if not len(true):
        return 0.5
    needed = max(1, int(-(-recall * len(true) // 1)))
    lowest = float(true[needed - 1])
    below = probabilities[probabilities < lowest]
    # Half-way to the next rejected item, so that rounding does not reject an accepted one.
    return min(0.5, (lowest + float(below.max() if len(below) else 0.0)) / 2)
