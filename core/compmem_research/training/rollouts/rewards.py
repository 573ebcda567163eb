"""Rewards of a trajectory: outcome, update, exit and format (2602.10560, section 3; outcome alone: 2602.08382)."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

from compmem_research.metrics import exact_match, f1
from compmem_research.tasks.sample import Sample
from compmem_research.training.rollouts.trajectory import Trajectory

RewardPart = Literal["outcome", "update", "exit", "format"]
Outcome = Literal["exact", "score", "f1"]
"""Criterion of a right answer: equal to the gold one after normalisation, the task's own metric, or the F1 of its words
(a share for an answer that is partly right)."""

EARLY: Final = -0.75
"""Reward for stopping before the last evidence was read."""
LATE: Final = -0.5
"""Reward for continuing to read after it."""

_FORM = re.compile(
    r"\s*(<think>[^<]*</think>)?\s*<check>\s*(yes|no)\s*</check>\s*<update>[^<]*</update>\s*"
    r"<next>\s*(continue|end)\s*</next>\s*",
    re.IGNORECASE,
)


def well_formed(reply: str) -> bool:
    """Whether a structured reply has all parts, each once, in order and closed; the parser is less strict."""
    return _FORM.fullmatch(reply) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rewards:
    """The parts of one trajectory's reward."""

    outcome: float
    """1 if the answer is right; a share of it by a criterion that has shares."""
    exit: float
    """0 for stopping right after the last evidence; negative if earlier, less so if later."""
    format: float
    """1 if every turn was well-formed."""
    update: tuple[float, ...]
    """For each step: 1 if the check is right, else -1."""

    def total(self, used: Collection[RewardPart]) -> float:
        """The whole trajectory's reward, from the parts that are used; `update` belongs to its steps."""
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
    """1 for the right answer, or for finding nothing if there is none; a share of it by F1 or the task's own metric."""
    if outcome == "score" or sample.metric == "unanswerable":
        return sample.score(trajectory.answer, found=trajectory.found)
    return (f1 if outcome == "f1" else exact_match)(trajectory.answer, sample.answers)


def exit_reward(last: int, enough: int) -> float:
    """The reward of stopping at step `last` if the evidence was complete after step `enough`."""
    if last == enough:
        return 0.0
    return EARLY if last < enough else LATE
