"""Finds headings of plain text and Markdown, and the first lines of classes and functions."""

import re
from collections import deque

from compmem.text.line_runs import ATX, LINE, MAX_LINE_CHARS, RULE

_MAX_HEADING_CHARS = 120
_NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3})*)\.?[ \t]+([^\W\d_].*)$")
_CLASS = re.compile(r"([ \t]*)class[ \t]+(?:(\w[\w.]*)[ \t]*(?:\(.*\)[ \t]*:?|:)|([A-Z]\w*))$")
_DEF = re.compile(r"([ \t]*)(?:async[ \t]+)?def[ \t]+(\w+)[ \t]*\(.*\)[ \t]*(?:->.*)?:?$")
_NUMBERED_LEVEL, _CODE_LEVEL = 10, 20


class LineReader:
    """The lines of a text from the current one on, a few at a time."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._matches = LINE.finditer(text)
        self._buffer: deque[tuple[int, int]] = deque()

    def span(self, n: int = 0) -> tuple[int, int] | None:
        """The span of the line `n` after the current one; None after the end."""
        while len(self._buffer) <= n:
            match = next(self._matches, None)
            if match is None:
                return None
            self._buffer.append(match.span())
        return self._buffer[n]

    def line(self, n: int = 0) -> str:
        """The beginning of that line, up to the length that is checked, stripped on the right; empty after the end."""
        span = self.span(n)
        return "" if span is None else self._text[span[0] : min(span[1], span[0] + MAX_LINE_CHARS)].rstrip()

    def skip(self, count: int) -> None:
        """Move on by this many lines."""
        for _ in range(count):
            self.span()
            self._buffer.popleft()


def find_heading(
    lines: LineReader, line: str, blank: bool, styles: dict[tuple[str, bool], int]
) -> tuple[int, str, int] | None:
    """Level, title and number of lines of the heading that begins at the current line."""
    if not line or len(line) > _MAX_HEADING_CHARS:
        return None
    if (match := ATX.match(line)) and (title := match[2].rstrip("#").strip()):
        return len(match[1]), title, 1
    if not blank:
        return None

    def after(n: int) -> str:
        return lines.line(n)[: _MAX_HEADING_CHARS + 1]

    if (over := RULE.match(line)) and after(2) == line and 0 < len(after(1).strip()) <= len(line):
        return styles.setdefault((over[1], True), len(styles) + 1), after(1).strip(), 3
    if (under := RULE.match(after(1))) and line[0] not in " \t>|-*+" and not RULE.match(line):
        if under[1] in "=-" or len(after(1)) >= len(line):
            return styles.setdefault((under[1], False), len(styles) + 1), line, 2
        return None
    return _bare_heading(line, alone=not after(1))


def _bare_heading(line: str, *, alone: bool) -> tuple[int, str, int] | None:
    """A numbered heading between blank lines, or the first line of a class or function."""
    if (match := _NUMBERED.match(line)) and alone and line[-1] not in ".。!?:;," and len(line.split()) <= 12:
        return _NUMBERED_LEVEL + match[1].count("."), match[2], 1
    if match := _CLASS.match(line):
        return _CODE_LEVEL + len(match[1].expandtabs()), match[2] or match[3], 1
    if match := _DEF.match(line):
        return _CODE_LEVEL + len(match[1].expandtabs()), match[2], 1
    return None
