"""What the systems of the speed measurement have in common."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What all systems have in common."""

    chunk_tokens: int = 4096
    """Tokens of the document in one step."""
    memory_tokens: int = 256
    """Tokens of working memory in a prompt, which every step decodes anew."""
    prompt_tokens: int = 64
    """Tokens of a prompt beside memory and chunk: the question and what is asked for."""
    probe_tokens: int = 12
    """Tokens that the gate reads behind each block; question and memory stand before it, once for all."""
    answer_tokens: int = 64
    recalled: int = 6
    """Blocks that the gated systems read."""
    candidates: int = 16
    """Blocks that the first stage hands to the gate."""
    timed_steps: int = 12
    """Steps of a loop of equal steps that are timed; its other steps are multiplied."""
    ratio: int = 4
