"""Reads a PDF from standard input, writes its title and pages as JSON, or why it is refused.

This is a script, started by `pdf`; importing nothing of the library, it starts in a tenth of a second. Arguments: the
processor seconds, the bytes of memory and the characters of text that it may take.
"""

import contextlib
import ctypes
import json
import math
import re
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from itertools import chain, pairwise, repeat
from typing import Any, Final, NamedTuple

_DIVIDED: Final = "\x02"
"""What PDFium puts in place of a hyphen and the line end behind it."""
_LINE_END: Final = "\r\n"

_LARGER: Final = 1.2
"""How many times the usual distance of lines is clearly more than it."""
_ROWS_LARGER: Final = 2.4
"""The same between rows of a table."""
_OTHER_SIZE: Final = 1.15
"""How many times as large as the font of a line that of the next one is where a paragraph ends."""
_DISTANCES: Final = (0.8, 3.0)
"""The least and most distance of lines of a paragraph, in font sizes."""
_USUAL: Final = 1.2
"""The distance of lines where none is known."""
_FEW: Final = 4
"""So many distances tell nothing of the usual one."""
_FULL: Final = 0.7
"""A line of this share of a long one's characters is full, so that its paragraph may go on in the next line."""
_CELL_GAP: Final = 1.0
"""Between two cells of a row are so many font sizes."""
_MAX_BOXES: Final = 40
"""Maximum number of boxes of a line that are looked at for cells."""

_MIN_PAGES: Final = 4
"""Fewer pages have no running header or footer."""
_MIN_RUNNING: Final = 3
_MOST: Final = 0.4
"""A line runs through so many of the pages; headers of left and right pages may differ."""
_MAX_RUNNING_LINES: Final = 3
"""Maximum number of lines of a header, and of a footer."""
_MAX_RUNNING_CHARS: Final = 200
_MAX_OFFSET: Final = 50
"""Maximum difference of a page's printed number from its place in the file."""
_HERE: Final = "\0"
"""In place of the number of a page."""
_NUMBER = re.compile(r"(?<!\d)[1-9]\d{0,4}(?!\d)")
_MAX_NUMBERS: Final = 4


class Line(NamedTuple):
    """A line of a page."""

    text: str
    size: float = 0.0
    """Size of its font; 0: unknown."""
    top: float = 0.0
    """Height of its base line on the page; of the first one if it goes on behind a divided word."""
    bottom: float = 0.0
    """Height of its last base line."""
    row: bool = False
    """It has several cells."""


def laid_out(pages: Sequence[Sequence[Line]]) -> list[str]:
    """The text of each page, without running headers and footers and with a blank line before each paragraph.

    A paragraph begins where the distance of lines is clearly larger than usual, or the size of the font changes.
    """
    usual = _usual_distances([*pages])
    texts = []
    for lines in _without_running([*pages]):
        parts = [lines[0].text] if lines else []
        for before, line in pairwise(lines):
            parts.append("\n\n" if _parts(before, line, usual) else "\n")
            parts.append(line.text)
        texts.append("".join(parts).replace(_DIVIDED, ""))
    return texts


def _parts(before: Line, line: Line, usual: dict[int, float]) -> bool:
    """Whether another paragraph begins between two lines."""
    small, large = sorted((before.size, line.size))
    if not small:
        return False
    more = _ROWS_LARGER if before.row and line.row else _LARGER
    return large > _OTHER_SIZE * small or before.bottom - line.top > more * usual.get(round(large), usual[0]) * large


def _usual_distances(pages: list[Sequence[Line]]) -> dict[int, float]:
    """The distance of lines within paragraphs, in font sizes, for each size of font; at 0 that of the others.

    It is the one that most full lines have from the next.
    """
    lengths = defaultdict[int, list[int]](list)
    for lines in pages:
        for line in lines:
            lengths[round(line.size)].append(len(line.text))
    full = {size: _FULL * sorted(found)[len(found) * 9 // 10] for size, found in lengths.items()}
    counts = defaultdict[int, Counter[int]](Counter)
    least, most = _DISTANCES
    for lines in pages:
        for before, line in pairwise(lines):
            if not line.size or abs(before.size - line.size) > 0.01 * line.size or before.row:
                continue
            distance = (before.bottom - line.top) / line.size
            if least < distance < most and len(before.text) >= full[round(line.size)]:
                counts[round(line.size)][round(20 * distance)] += 1
    known = {size: _mode(found) for size, found in counts.items() if found.total() >= _FEW}
    return {0: _mode(sum(counts.values(), Counter())) or _USUAL, **known}


def _mode(counts: Counter[int]) -> float:
    """The most frequent distance, given in twentieths; 0: there is none."""
    return max(sorted(counts), key=lambda n: counts[n - 1] + 2 * counts[n] + counts[n + 1], default=0) / 20


def _without_running(pages: list[Sequence[Line]]) -> list[Sequence[Line]]:
    """The pages without first and last lines that most of them have, but for the number of the page.

    A first line without such a number is kept on the first page that has it. A line in a larger font than most of the
    text is no running one, and a page keeps at least one line.
    """
    if len(pages) < _MIN_PAGES:
        return pages
    sizes = Counter[int]()
    for line in chain(*pages):
        sizes[round(line.size)] += len(line.text)
    largest = _OTHER_SIZE * max(sizes, key=lambda size: sizes[size], default=0) + 0.5
    kept = set[str]()
    for at in (0, -1):
        for _ in range(_MAX_RUNNING_LINES):
            ends = [lines[at] if len(lines) > 1 else None for lines in pages]
            texts = [line.text if line and line.size <= largest else "" for line in ends]
            running = _running(texts)
            for number in list(running):
                text = texts[number]
                if at == 0 and running[number] is None and text not in kept:
                    kept.add(text)
                    running.pop(number)
            if not running:
                break
            pages = [
                lines if number not in running else lines[1:] if at == 0 else lines[:-1]
                for number, lines in enumerate(pages)
            ]
    return pages


def _running(texts: Sequence[str]) -> dict[int, int | None]:
    """The pages whose line runs through most pages, each with the offset of its number in it; None: it has none.

    Args:
        texts: The first or last line of each page.
    """
    marks = [_marks(text, page) for page, text in enumerate(texts)]
    counts = Counter(chain(*marks))
    edges = Counter(chain.from_iterable({edge for mark in found for edge in _edges(mark)} for found in marks))
    least = max(_MIN_RUNNING, _MOST * len(texts))
    running: dict[int, int | None] = {}
    for page, found in enumerate(marks):
        for mark in found:
            most = max((edges[edge] for edge in _edges(mark)), default=0) if counts[mark] > 1 else 0
            if max(counts[mark], most) >= least:
                running.setdefault(page, mark[1])
    return running


def _marks(line: str, page: int) -> list[tuple[str, int | None]]:
    """What a line may have in common with those of other pages.

    That is its text, and the text around each number with the number's offset from that of the page.
    """
    text = " ".join(line[: _MAX_RUNNING_CHARS + 1].split())
    if not text or len(text) > _MAX_RUNNING_CHARS:
        return []
    marks: list[tuple[str, int | None]] = [(text, None)] if any(map(str.isalpha, text)) else []
    found = [(match, int(match[0]) - page) for match in [*_NUMBER.finditer(text)][-_MAX_NUMBERS:]]
    marks += [
        (f"{text[: match.start()]}{_HERE}{text[match.end() :]}", offset)
        for match, offset in found
        if abs(offset) <= _MAX_OFFSET
    ]
    return marks


def _edges(mark: tuple[str, int | None]) -> list[tuple[bool, int]]:
    """Whether the number of a mark ends its line, and its offset; both ways for a line without anything else."""
    text, offset = mark
    found = ((text[0], False), (text[-1], True))
    return [] if offset is None else [(ends, offset) for character, ends in found if character == _HERE]


def _lines(text: str, page: Any, pdfium: Any) -> list[Line]:
    """The lines of a page's text that are not blank, each with its place on the page.

    Where the text lacks characters of the page, since they are out of its bounds, a line is found by its characters.
    """
    codes = map(pdfium.FPDFText_GetUnicode, repeat(page), range(pdfium.FPDFText_CountChars(page)))
    starts = defaultdict[str, deque[int]](deque)
    at = 0
    for line in "".join(chr(code) if code <= sys.maxunicode else "\ufffd" for code in codes).split(_LINE_END):
        starts[line].append(at)
        at += len(line) + len(_LINE_END)
    measured = _Measure(page, pdfium)
    return [
        measured.line(line, starts[line].popleft()) if starts.get(line) else Line(line)
        for line in text.split(_LINE_END)
        if line.strip()
    ]


class _Measure:
    """Places and sizes of the characters of a page, which PDFium numbers."""

    def __init__(self, page: Any, pdfium: Any) -> None:
        self._page, self._pdfium = page, pdfium
        self._matrix = pdfium.FS_MATRIX()
        self._sides = [ctypes.c_double() for _ in range(4)]

    def line(self, text: str, at: int) -> Line:
        """The line with this text, whose first character is the one at `at`."""
        first = at + len(text) - len(text.lstrip())
        last = max(first, at + len(text.rstrip(f" {_DIVIDED}")) - 1)
        some = (first, (first + last) // 2, last)
        size = sorted(map(self._size, some))[1]
        heights = [*map(self._height, some)]
        if not all(map(math.isfinite, (size, *heights))):
            return Line(text)
        return Line(text, size, heights[0], min(heights), self._has_cells(at, len(text), size))

    def _size(self, at: int) -> float:
        self._pdfium.FPDFText_GetMatrix(self._page, at, self._matrix)
        size: float = self._pdfium.FPDFText_GetFontSize(self._page, at)
        return size * math.hypot(self._matrix.c, self._matrix.d)

    def _height(self, at: int) -> float:
        x, y = self._sides[:2]
        self._pdfium.FPDFText_GetCharOrigin(self._page, at, x, y)
        return y.value

    def _has_cells(self, at: int, count: int, size: float) -> bool:
        """Whether there is a wide gap between boxes of the line's text."""
        left, top, right, bottom = self._sides
        edge = math.inf
        for box in range(min(_MAX_BOXES, self._pdfium.FPDFText_CountRects(self._page, at, count))):
            self._pdfium.FPDFText_GetRect(self._page, box, left, top, right, bottom)
            if left.value - edge > _CELL_GAP * size:
                return True
            edge = right.value
        return False


def _limit(seconds: int, memory: int) -> None:
    """Let the system end this process beyond so much; Windows has no such limits."""
    if sys.platform == "win32":
        return
    import resource

    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # a lower limit is set already, or there is none of this kind
            resource.setrlimit(kind, (most, most))


def _read(data: bytes, most: int) -> dict[str, Any]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            return {"refused": "the PDF is encrypted"}
        return {"refused": f"cannot be read as PDF ({error})"}
    pages, count = list[list[Line]](), 0
    for page in document:
        text = page.get_textpage()
        read = text.get_text_bounded()
        count += max(len(read), text.count_chars())
        if count > most:
            return {"refused": f"{len(data):,} bytes of PDF with far more text than that: not read"}
        pages.append(_lines(read, text.raw, pypdfium2.raw))
        text.close()
        page.close()
    return {"title": document.get_metadata_value("Title"), "pages": laid_out(pages)}


if __name__ == "__main__":
    _seconds, _memory, _characters = map(int, sys.argv[1:])
    _limit(_seconds, _memory)
    sys.stdout.write(json.dumps(_read(sys.stdin.buffer.read(), _characters)))
