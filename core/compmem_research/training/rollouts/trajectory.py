"""The result of one rollout: its steps, its answer, and the tokens of every turn."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One prompt and its sampled reply."""

    prompt: Sequence[int]
    reply: Sequence[int]
    """The sampled tokens, with the end token if there is one."""
    chunks: tuple[Sequence[int], ...] = ()
    """Tokens of the chunks whose memory preceded the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the loop: a chunk and the reply."""

    evidence: bool
    """Whether the chunk contains evidence."""
    check: bool
    """Whether the reply says that it does."""
    formed: bool = True
    """Whether the reply was well-formed and complete."""
    memory: str = ""
    """The working memory before it."""
    number: int = 0
    """Number of the chunk in the context."""
    turn: Turn | None = None
    """The tokens; None in a hand-written trajectory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One rollout of one question."""

    steps: tuple[Step, ...]
    enough: int
    """Number of the step after which the evidence is complete: the right step to stop; -1 if there are no steps."""
    answer: str
    """The answer; empty if nothing was found."""
    found: bool = True
    """Whether the working memory was not empty at the end."""
    formed: bool = True
    """Whether the answer was complete."""
    turn: Turn | None = None
    """The answer's tokens; None if the model was not asked for one."""

    @property
    def turns(self) -> list[Turn]:
        """All turns in order, the answer last."""
        return [turn for turn in (*(s.turn for s in self.steps), self.turn) if turn is not None]
