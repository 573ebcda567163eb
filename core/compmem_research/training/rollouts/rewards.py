"""What a trajectory is worth: outcome, update, exit and format (2602.10560, section 3; outcome alone: 2602.08382)."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from compmem_research.metrics import exact_match
from compmem_research.tasks.sample import Sample
from compmem_research.training.rollouts.trajectory import Trajectory

RewardPart = Literal["outcome", "update", "exit", "format"]
Outcome = Literal["exact", "score"]
"""What makes an answer right: equal to the gold one once normalised, or what the task's own metric gives."""

EARLY: Final = -0.75
"""Reward for stopping before the last evidence was read."""
LATE: Final = -0.5
"""Reward for reading on after it."""

_FORM = re.compile(
    r"\s*(<think>[^<]*</think>)?\s*<check>\s*(yes|no)\s*</check>\s*<update>[^<]*</update>\s*"
    r"<next>\s*(continue|end)\s*</next>\s*",
    re.IGNORECASE,
)


def well_formed(reply: str) -> bool:
    """Whether a structured reply has its parts, each once, in order and closed. What parses may fall short of that."""
    return _FORM.fullmatch(reply) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewards:
    """The parts of one trajectory's reward."""

    outcome: float
    """1 where the answer is right."""
    exit: float
    """0 where it stopped right after the last evidence; less for early, a little less for late."""
    format: float
    """1 where every turn was well-formed."""
    update: tuple[float, ...]
    """Of each step: 1 where the check is right, else -1."""

    def total(self, used: Collection[RewardPart]) -> float:
        """The whole trajectory's reward, of the parts that are used; `update` belongs to its steps."""
        parts: dict[RewardPart, float] = {"outcome": self.outcome, "exit": self.exit, "format": self.format}
        return sum(value for part, value in parts.items() if part in used)


def reward(trajectory: Trajectory, sample: Sample, outcome: Outcome = "exact") -> Rewards:
    """All parts of a trajectory's reward."""
    return Rewards(
        outcome=outcome_reward(trajectory, sample, outcome),
        exit=exit_reward(len(trajectory.steps) - 1, trajectory.enough),
        format=float(trajectory.formed and all(step.formed for step in trajectory.steps)),
        update=tuple(1.0 if step.check == step.evidence else -1.0 for step in trajectory.steps),
    )


def outcome_reward(trajectory: Trajectory, sample: Sample, outcome: Outcome) -> float:
    """1 for the right answer; for a question that has none, for finding nothing."""
    if outcome == "score" or sample.metric == "unanswerable":
        return sample.score(trajectory.answer, found=trajectory.found)
    return exact_match(trajectory.answer, sample.answers)


def exit_reward(last: int, enough: int) -> float:
    """What the number of the last step is worth where the evidence was complete after step `enough`."""
    if last == enough:
        return 0.0
    return EARLY if last < enough else LATE
