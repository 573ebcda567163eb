"""What one rollout leaves behind: its steps, its answer, and the tokens of every turn."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Turn:
    """One prompt and the reply that was drawn behind it."""

    prompt: Sequence[int]
    reply: Sequence[int]
    """The tokens as they were drawn, the end token with them where the reply ended by one."""
    chunk: Sequence[int] = ()
    """Tokens of the chunk whose memory stood left of the prompt; none where there was none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the loop: a chunk read, a reply."""

    evidence: bool
    """Whether the chunk holds evidence."""
    check: bool
    """Whether the reply says so."""
    formed: bool = True
    """Whether the reply was well-formed and came to its end."""
    memory: str = ""
    """The working memory before it."""
    number: int = 0
    """Of the chunk in the context."""
    turn: Turn | None = None
    """The tokens; None in a trajectory written by hand."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """One rollout of one question."""

    steps: tuple[Step, ...]
    enough: int
    """Number of the step after which the evidence is complete: where to stop."""
    answer: str
    """Empty where nothing was found."""
    found: bool = True
    """Whether the working memory held anything at the end."""
    formed: bool = True
    """Whether the answer came to its end."""
    turn: Turn | None = None
    """The answer's tokens; None where the model was not asked for one."""

    @property
    def turns(self) -> list[Turn]:
        """All turns in order, the answer last."""
        return [turn for turn in (*(s.turn for s in self.steps), self.turn) if turn is not None]
