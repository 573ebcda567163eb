"""Where a row of tokens ends: at a stop id, at the token that completes a stop string, or where it goes in circles."""

from collections.abc import Collection, Sequence
from typing import Any

CIRCLE = range(8, 129)
"""Tokens of what counts as going in circles when it comes three times in a row. A shorter one is a longer one too."""


class Stop:
    """Watches the tokens of one row.

    Args:
        tokenizer: Turns tokens into text.
        ids: Tokens that end the row.
        strings: Texts that end it.
        circles: A row that goes in circles has ended, as weak models' do: it would go on to the last token it may have.
    """

    def __init__(self, tokenizer: Any, ids: Collection[int], strings: Sequence[str], *, circles: bool = False) -> None:
        self._tokenizer = tokenizer
        self._ids = frozenset(ids)
        self._strings = tuple(strings)
        self._circles = circles
        # A token holds at least a byte of text; some more let a decoder finish a character begun earlier.
        self._tail = max((len(s.encode()) for s in strings), default=0) + 8
        self.tokens: list[int] = []
        """The tokens kept: a stop id is left out, the token that completes a stop string is in."""
        self.done = False

    def take(self, tokens: Sequence[int]) -> list[int]:
        """Take tokens up to the end of the row; gives those that were kept."""
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
            if self._circles and len(self.tokens) % CIRCLE.start == 0 and is_repeating(self.tokens):
                self.done = True
        return self.tokens[before:]


def is_repeating(tokens: Sequence[int]) -> bool:
    """Whether the tokens end with the same run of them three times."""
    last = len(tokens) - 1
    return any(
        tokens[last - n] == tokens[last] and tokens[-n:] == tokens[-2 * n : -n] == tokens[-3 * n : -2 * n]
        for n in CIRCLE
        if 3 * n <= len(tokens)
    )
