"""How much better a trajectory, and each of its steps, did than the others of its group."""

from torch import Tensor

STD_FLOOR = 1e-6


def group_advantages(rewards: Tensor, *, scale: bool) -> Tensor:
    """Rewards `[group]` without their mean; with `scale` in units of their deviation.

    Without it as in Dr.GRPO (2503.20783) and MemAgent (2507.02259); with it the group norm of 2602.08382, algorithm 1.
    """
    centred = rewards - rewards.mean()
    return centred / (rewards.std(correction=0) + STD_FLOOR) if scale else centred


def step_advantages(rewards: Tensor, alive: Tensor) -> Tensor:
    """Rewards `[group, steps]` without the mean of those still running at that step; 0 where one is not.

    Args:
        rewards: Of each step.
        alive: Which trajectories made that step, `[group, steps]`.
    """
    running = alive.to(rewards.dtype)
    mean = (rewards * running).sum(0) / running.sum(0).clamp(min=1)
    return (rewards - mean) * running


def mixed_advantages(whole: Tensor, steps: Tensor, alpha: float) -> Tensor:
    """Those of each step `[group, steps]`: alpha of the trajectory's, the rest its own (2602.10560)."""
    return alpha * whole[:, None] + (1 - alpha) * steps
