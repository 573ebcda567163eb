"""The data of an update: the turns of many trajectories, and their advantages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from compmem_research.training.rollouts.rewards import RewardPart, Rewards
from compmem_research.training.rollouts.trajectory import Trajectory, Turn

FIGURES: Final = (
    "reward", "outcome", "reward_update", "reward_exit", "reward_format", "early", "late", "blocks_read",
    "reply_tokens", "clipped", "rollout_tokens_per_second",
)  # fmt: skip
"""Logged metrics of each step besides the losses; means over trajectories, or over their steps."""
STD_FLOOR: Final = 1e-6


@dataclass(frozen=True, kw_only=True, slots=True)
class PolicyBatch:
    """The turns of some questions' trajectories, and their advantages."""

    turns: Sequence[Turn]
    advantages: Tensor
    shares: Tensor
    """1 over the number of turns of a turn's trajectory."""
    metrics: Mapping[str, float]
    """Sums of the metrics."""
    counts: Mapping[str, float]
    tokens: int
    """Tokens of the turns with a loss."""
    then: Tensor | None = None
    """Likelihoods under the policy that sampled the turns, if it is not the current one."""
    reference: Tensor | None = None


def turn_advantages(
    runs: Sequence[Trajectory], worth: Sequence[Rewards], used: Sequence[RewardPart], *, alpha: float | None,
    scale: bool,
) -> list[list[float]]:  # fmt: skip
    """The advantage of every turn of every trajectory of one group.

    Args:
        runs: The group.
        worth: The rewards of each.
        used: The rewards that are used.
        alpha: Share of the trajectory's advantage in a step's. None: all of it.
        scale: Divide by the group's deviation.
    """
    whole = group_advantages(torch.tensor([w.total(used) for w in worth]), scale=scale)
    longest = max(len(run.steps) for run in runs)
    alive = torch.tensor([[number < len(run.steps) for number in range(longest)] for run in runs])
    each = whole[:, None].expand(-1, longest)
    if alpha is not None:
        own = torch.tensor([[*w.update, *[0.0] * (longest - len(w.update))] for w in worth])
        each = mixed_advantages(whole, step_advantages(own, alive), alpha)
    # The answer's turn has the advantage of the trajectory alone.
    return [
        [*each[g, : len(run.steps)].tolist(), *([float(whole[g])] if run.turn is not None else [])]
        for g, run in enumerate(runs)
    ]


def group_advantages(rewards: Tensor, *, scale: bool) -> Tensor:
    """Rewards `[group]` minus their mean; with `scale`, divided by their deviation.

    Unscaled as in Dr.GRPO (2503.20783) and MemAgent (2507.02259); scaled is the group norm of 2602.08382, algorithm 1.
    """
    centred = rewards - rewards.mean()
    return centred / (rewards.std(correction=0) + STD_FLOOR) if scale else centred


def step_advantages(rewards: Tensor, alive: Tensor) -> Tensor:
    """Rewards `[group, steps]` minus the mean of trajectories that are running at that step; 0 for the others.

    Args:
        rewards: Reward of each step.
        alive: Which trajectories made that step, `[group, steps]`.
    """
    running = alive.to(rewards.dtype)
    mean = (rewards * running).sum(0) / running.sum(0).clamp(min=1)
    return (rewards - mean) * running


def mixed_advantages(whole: Tensor, steps: Tensor, alpha: float) -> Tensor:
    """Advantages of each step `[group, steps]`: alpha of the trajectory's, the rest its own (2602.10560)."""
    return alpha * whole[:, None] + (1 - alpha) * steps


def figures_of(
    runs: Sequence[Trajectory], worth: Sequence[Rewards], used: Sequence[RewardPart]
) -> tuple[dict[str, float], dict[str, float]]:
    """Sums of the metrics of trajectories, and their divisors."""
    steps, last = sum(len(run.steps) for run in runs), [len(run.steps) - 1 for run in runs]
    sums = {
        "reward": sum(w.total(used) for w in worth),
        "outcome": sum(w.outcome for w in worth),
        "reward_exit": sum(w.exit for w in worth),
        "reward_format": sum(w.format for w in worth),
        "early": float(sum(n < run.enough for n, run in zip(last, runs, strict=True))),
        "late": float(sum(n > run.enough for n, run in zip(last, runs, strict=True))),
        "blocks_read": float(steps),
        "reply_tokens": float(sum(len(turn.reply) for run in runs for turn in run.turns)),
    }
    counts = dict.fromkeys(sums, float(len(runs)))
    sums["reward_update"], counts["reward_update"] = sum(sum(w.update) for w in worth), float(steps)
    counts["reply_tokens"] = float(sum(len(run.turns) for run in runs))
    return sums, counts
