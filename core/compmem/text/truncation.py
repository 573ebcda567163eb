"""The beginning or the ending of a text, within a number of tokens."""

import re
from collections.abc import Callable
from typing import Final

Count = Callable[[str], int]
"""Tokens of a text."""

CHARS_PER_TOKEN: Final = 16
"""Characters per token above which a text counts as too long without being tokenised."""

_BORDER: Final = re.compile(r"[.!?。！？\n]\s")


def beginning(text: str, limit: int, count: Count) -> int:
    """The end of the longest beginning of at most `limit` tokens, at the end of a sentence or word if one is near."""
    end = min(len(text), limit * CHARS_PER_TOKEN)
    if count(text[:end]) > limit:
        low, high = 1, end
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(text[:middle]) <= limit else (low, middle - 1)
        end = low
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
        low, high = 0, len(parts)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if count(separator.join(parts[middle:])) <= limit else (middle + 1, high)
        if kept := separator.join(parts[low:]):
            return kept
    return ""
