"""Settings that the systems of the speed measurement share."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedSettings:
    """Settings that all systems share."""

    chunk_tokens: int = 4096
    """Tokens of the document in one step."""
    memory_tokens: int = 256
    """Tokens of working memory in a prompt; every step decodes this many new ones."""
    prompt_tokens: int = 64
    """Tokens of a prompt besides memory and chunk: question and instructions."""
    probe_tokens: int = 12
    """Tokens that the gate reads after each block; question and memory come before it, shared by all blocks."""
    answer_tokens: int = 64
    recalled: int = 6
    """Blocks that the gated systems read."""
    candidates: int = 16
    """Blocks that the first stage passes to the gate."""
    timed_steps: int = 12
    """Timed steps of a loop of equal steps; the time of the others is extrapolated."""
    ratio: int = 4
