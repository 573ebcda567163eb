"""Paragraphs and running lines of the pages of a PDF."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from statistics import median
from typing import Final, NamedTuple

_BREAK_FACTOR: Final = 1.2
"""A distance of lines of so many times the usual one, or a font of so many times the size, begins a paragraph."""
_DISTANCES: Final = (0.8, 3.0)
"""The smallest and largest distance of the lines of a paragraph, in sizes of the font."""
_MIN_PAGES: Final = 4
"""Fewer pages have no running header or footer."""
_MIN_SHARE: Final = 0.4
"""A line runs through so many of the pages; those of left and right pages may differ."""
_MAX_LINES: Final = 3
"""Maximum number of lines of a header, and of a footer."""
_MAX_CHARS: Final = 200
"""Maximum number of characters of such a line."""
_NUMBER = re.compile(r"(?<!\d)\d{1,5}(?!\d)")
_MAX_NUMBERS: Final = 4
_SENTENCE_ENDS: Final = ".!?:;…。！？"


_Mark = tuple[str, int | None]
"""What a line may have in common with others: its text, with a number left out, and that number's offset."""


class Line(NamedTuple):
    """A line of a page."""

    text: str
    size: float = 0.0
    """Size of its font; 0: unknown."""
    top: float = 0.0
    """Height of its first character on the page."""
    bottom: float = 0.0
    """Height of its last character: it may go on behind a divided word."""


def pages_text(pages: Sequence[Sequence[Line]]) -> str:
    """The text of the pages without running headers and footers, and with a blank line before each paragraph.

    A paragraph begins where the distance of lines is clearly larger than usual or the size of the font changes, and
    with a page, unless a sentence goes on there.
    """
    usual = _usual_distance(pages)
    text, last = list[str](), ""
    for lines in filter(None, _without_headers_and_footers(pages)):
        first = lines[0].text
        goes_on = last[-1:] not in _SENTENCE_ENDS and first[:1].islower()
        text += ["\n" if goes_on else "\n\n" if last else "", first]
        for before, line in pairwise(lines):
            text += ["\n\n" if _starts_paragraph(before, line, usual) else "\n", line.text]
        last = lines[-1].text
    return "".join(text)


def _usual_distance(pages: Sequence[Sequence[Line]]) -> float:
    """The distance of lines within paragraphs, in sizes of their font: a low one of those that occur."""
    least, most = _DISTANCES
    found = sorted(
        distance
        for before, line in chain.from_iterable(map(pairwise, pages))
        if line.size
        and line.size == before.size
        and least < (distance := (before.bottom - line.top) / line.size) < most
    )
    return found[len(found) // 4] if found else most


def _starts_paragraph(before: Line, line: Line, usual: float) -> bool:
    small, large = sorted((before.size, line.size))
    if not small:
        return False
    return large > _BREAK_FACTOR * small or before.bottom - line.top > _BREAK_FACTOR * usual * large


def _without_headers_and_footers(pages: Sequence[Sequence[Line]]) -> list[Sequence[Line]]:
    """The pages without first and last lines that many of them have, but for the number of the page.

    One without such a number stays on the first page. A line in a larger font than most is no running one, and a page
    keeps at least one line.
    """
    left = list(pages)
    if len(pages) < _MIN_PAGES:
        return left
    largest = _BREAK_FACTOR * median([line.size for line in chain(*pages)] or [0.0])
    for at, _ in ((at, n) for at in (0, -1) for n in range(_MAX_LINES)):
        ends = [lines[at] if len(lines) > 1 and lines[at].size <= largest else None for lines in left]
        marks = [set(_marks(line.text, page)) if line else set() for page, line in enumerate(ends)]
        running = _running(marks)
        for page, found in enumerate(marks):
            if any(offset is not None or page > 0 for _, offset in found & running):
                left[page] = left[page][1:] if at == 0 else left[page][:-1]
    return left


def _running(marks: Sequence[set[_Mark]]) -> set[_Mark]:
    """Marks that repeat on many pages, or on some pages if their page number is at the same end as on many pages.

    "Chapter 3 12" is such a header.
    """
    least, counts = max(3, _MIN_SHARE * len(marks)), Counter(chain(*marks))
    places = Counter(chain.from_iterable(set(map(_number_place, found)) for found in marks))
    several = {mark for mark, count in counts.items() if count > 1 and _number_place(mark)}
    return {m for m, count in counts.items() if count >= least or (m in several and places[_number_place(m)] >= least)}


def _number_place(mark: _Mark) -> tuple[str, int] | None:
    """Where the number of a page stands in its line, first or last, and its offset."""
    text, offset = mark
    if offset is None or "\0" not in (text[0], text[-1]):
        return None
    return ("first" if text[0] == "\0" else "last"), offset


def _marks(line: str, page: int) -> Iterator[_Mark]:
    """What a line may have in common with those of other pages.

    That is its text, and the text around each number with the number's offset from that of the page.
    """
    if len(line) > _MAX_CHARS:
        return
    if any(map(str.isalpha, line)):
        yield line, None
    for number in [*_NUMBER.finditer(line)][-_MAX_NUMBERS:]:
        yield f"{line[: number.start()]}\0{line[number.end() :]}", int(number[0]) - page
