"""The end of a row of tokens: a stop id, the token that completes a stop string, or repetition."""

from collections.abc import Collection, Sequence
from typing import Any

REPEATED_LENGTHS = range(8, 129)
"""Tokens of a run that counts as repetition if it occurs three times in a row. Shorter runs form longer ones."""


class StopDetector:
    """Watches the tokens of one row.

    Args:
        tokenizer: Turns tokens into text.
        ids: Tokens that end the row.
        strings: Texts that end it.
        stop_on_repetition: End a row that repeats itself, as weak models do up to the last allowed token.
    """

    def __init__(
        self, tokenizer: Any, ids: Collection[int], strings: Sequence[str], *, stop_on_repetition: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._ids = frozenset(ids)
        self._strings = tuple(strings)
        self._circles = stop_on_repetition
        # A token has at least one byte of text; a few more let a decoder complete a character that began earlier.
        self._tail = max((len(s.encode()) for s in strings), default=0) + 8
        self.tokens: list[int] = []
        """The tokens so far: without a stop id, with the token that completes a stop string."""
        self.done = False

    def append(self, tokens: Sequence[int]) -> list[int]:
        """Take tokens up to the end of the row; returns those that were kept."""
        before = len(self.tokens)
        for token in tokens:
            if self.done:
                break
            if token in self._ids:
                self.done = True
                break
            self.tokens.append(token)
            if self._strings:
                tail = self._tokenizer.decode(self.tokens[-self._tail :])
                self.done = any(s in tail for s in self._strings)
            if self._circles and len(self.tokens) % REPEATED_LENGTHS.start == 0 and is_repeating(self.tokens):
                self.done = True
        return self.tokens[before:]


def is_repeating(tokens: Sequence[int]) -> bool:
    """Whether the tokens end with the same run three times."""
    last = len(tokens) - 1
    return any(
        tokens[last - n] == tokens[last] and tokens[-n:] == tokens[-2 * n : -n] == tokens[-3 * n : -2 * n]
        for n in REPEATED_LENGTHS
        if 3 * n <= len(tokens)
    )
