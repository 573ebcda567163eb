"""The objective: clipped importance ratios times advantages, per reply (GSPO) or per token (DAPO).

Both sum over turns; the trainer divides by the number of trajectories (GSPO) or of tokens (DAPO).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

import torch
from torch import Tensor

Algorithm = Literal["gspo", "dapo"]

CLIPS: Final[Mapping[Algorithm, tuple[float, float]]] = {"gspo": (3e-4, 4e-4), "dapo": (0.2, 0.2)}
"""Published ranges: 2507.18071, section 5.1; MemAgent's configuration (2507.02259)."""
MAX_LOG_RATIO: Final = 20.0
"""Log ratios are clipped to this value, since their exponential would overflow."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """The objective, and the size of an update.

    Raises:
        ValueError: A value is out of its range.
    """

    algorithm: Algorithm = "gspo"
    clip: tuple[float, ...] | None = None
    """How far the ratio may fall below and rise above 1. None: the published range of the algorithm."""

    def __post_init__(self) -> None:
        if self.algorithm not in get_args(Algorithm):
            raise ValueError(f"algorithm={self.algorithm!r} must be 'gspo' or 'dapo'")
        if self.clip is not None and (len(self.clip) != 2 or min(self.clip) <= 0 or self.clip[0] >= 1):
            raise ValueError(f"clip={self.clip!r} must be two numbers above 0, the first below 1")

    @property
    def range(self) -> tuple[float, float]:
        """How far the ratio may fall below and rise above 1."""
        low, high = CLIPS[self.algorithm] if self.clip is None else self.clip
        return low, high


@dataclass(frozen=True, slots=True)
class Replies:
    """The replies of many turns, padded on the right."""

    now: Tensor
    """Log-probability of each token under the policy, `[turns, tokens]`, with gradients."""
    then: Tensor
    """The same under the policy that sampled them; `now` without gradients if that is the same."""
    mask: Tensor
    """Mask of tokens, `[turns, tokens]`."""
    advantages: Tensor
    """`[turns]`."""
    shares: Tensor
    """Share of a turn in its trajectory: 1 over the number of its turns, `[turns]`."""


def policy_loss(replies: Replies, objective: Objective) -> tuple[Tensor, Tensor]:
    """The loss summed over turns (GSPO: weighted by their shares) or tokens (DAPO), and the sum of clipped ones."""
    mask = replies.mask
    apart = torch.where(mask, replies.now - replies.then, 0.0)
    advantages = replies.advantages
    weights = mask.to(apart.dtype)
    if objective.algorithm == "gspo":
        # The geometric mean of the tokens' ratios (2507.18071, eq. 7).
        apart = apart.sum(1) / weights.sum(1)
        weights = replies.shares
    else:
        advantages = advantages[:, None]
    ratio = apart.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    low, high = objective.range
    free, held = ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages
    gain = torch.minimum(free, held)
    return -(gain * weights).sum(), ((gain.detach() != free.detach()) * weights).sum()


def divergence(replies: Replies, reference: Tensor, algorithm: Algorithm) -> Tensor:
    """KL divergence from a reference, summed like the loss: `r - log r - 1` with the ratio `r` (Schulman's k3).

    Args:
        replies: Replies under the policy.
        reference: Log-probabilities under the reference, `[turns, tokens]`.
        algorithm: The weights of turns and tokens.
    """
    apart = torch.where(replies.mask, reference - replies.now, 0.0).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    each = apart.exp() - apart - 1
    if algorithm == "gspo":
        return (each.sum(1) / replies.mask.sum(1) * replies.shares).sum()
    return each.sum()
