"""Where a row of tokens ends: at a stop id, or at the token that completes a stop string."""

from collections.abc import Collection, Sequence
from typing import Any


class Stop:
    """Watches the tokens of one row."""

    def __init__(self, tokenizer: Any, ids: Collection[int], strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._ids = frozenset(ids)
        self._strings = tuple(strings)
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
        return self.tokens[before:]
