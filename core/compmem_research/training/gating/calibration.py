"""What a classifier's logits are worth: as probabilities, and where to draw the line."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def platt(logits: Tensor, labels: Tensor, *, decay: float = 1e-4) -> tuple[float, float]:
    """Slope and bias that make logits those of probabilities, by maximum likelihood (Platt's scaling).

    Args:
        logits: `[n]`.
        labels: `[n]`.
        decay: A little of it keeps the slope finite where the labels can be told apart without error.
    """
    scale = torch.tensor([1.0, 0.0], dtype=torch.float64)
    scores, wanted = logits.double().cpu(), labels.double().cpu()
    if wanted.min() == wanted.max():
        # Labels all alike would drive the bias to infinity.
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
    """Chance that one that is true scores above one that is not, ties half; 0.5 where there are not both."""
    true, false = scores[labels.bool()].double(), scores[~labels.bool()].double().sort().values
    if not len(true) or not len(false):
        return 0.5
    below = torch.searchsorted(false, true, right=False) + torch.searchsorted(false, true, right=True)
    return float(below.double().mean()) / (2 * len(false))


def threshold_for(probabilities: Tensor, labels: Tensor, recall: float) -> float:
    """The highest threshold up to 0.5 that lets at least this share of the true ones through.

    Above 0.5 there is nothing to gain: what is likelier true than not is read.
    """
    true = probabilities[labels.bool()].sort(descending=True).values
    if not len(true):
        return 0.5
    needed = max(1, int(-(-recall * len(true) // 1)))
    lowest = float(true[needed - 1])
    below = probabilities[probabilities < lowest]
    # Half-way to what is turned down next, so that rounding turns down none that should pass.
    return min(0.5, (lowest + float(below.max() if len(below) else 0.0)) / 2)
