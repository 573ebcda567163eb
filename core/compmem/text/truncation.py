"""The beginning or the ending of a text, within a number of tokens."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Final

Count = Callable[[str], int]
"""Tokens of a text."""

CHARS_PER_TOKEN: Final = 16
"""Maximum number of characters of a text per token: some tokenizers count no tokens for spaces and unknown words."""

_BORDER: Final = re.compile(r"[.!?。！？\n]\s")


def beginning(text: str, limit: int, count: Count) -> int:
    """The end of the longest beginning of at most `limit` tokens, at the end of a sentence or word if one is near."""
    end = min(len(text), limit * CHARS_PER_TOKEN)
    if count(text[:end]) > limit:
        end = max(1, bisect_right(range(1, end + 1), limit, key=lambda n: count(text[:n])))
    if end == len(text):
        return end
    borders = [match.end() for match in _BORDER.finditer(text, end // 2, end)]
    blank = max(text.rfind(" ", end // 2, end), text.rfind("\n", end // 2, end)) + 1
    return borders[-1] if borders else blank or end


def ending(text: str, limit: int, count: Count) -> str:
    """The longest ending of at most `limit` tokens: whole lines, else words of its last line, else characters."""
    if count(text) <= limit:
        return text
    last = text.rstrip().rpartition("\n")[2]
    for parts, separator in ((text.split("\n"), "\n"), (last.split(" "), " "), (list(last), "")):
        first = bisect_left(range(len(parts)), -limit, key=lambda n: -count(separator.join(parts[n:])))
        if kept := separator.join(parts[first:]):
            return kept
    return ""
