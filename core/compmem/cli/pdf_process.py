"""Reads a PDF from standard input, writes its title and lines as JSON, or why it is refused.

This is a script, started by `pdf`; importing nothing of the library, it starts in a tenth of a second. Arguments: the
processor seconds, the bytes of memory and the characters of text that it may take.
"""

import contextlib
import ctypes
import json
import math
import sys
from collections.abc import Iterator
from typing import Any, Final

Line = tuple[str, float, float, float]
"""Text, size of the font (0: unknown), and the heights of its first and its last character on the page."""

_DIVIDED: Final = "\x02"
"""What PDFium puts in place of a hyphen and the line end behind it."""


def _limit(seconds: int, memory: int) -> None:
    """Let the system end this process beyond so much; Windows has no such limits."""
    if sys.platform == "win32":
        return
    import resource

    for kind, most in ((resource.RLIMIT_CPU, seconds), (resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # a lower limit is set already, or there is none of this kind
            resource.setrlimit(kind, (most, most))


def _lines(page: Any, text: Any, pdfium: Any) -> Iterator[Line]:
    """The lines of a page that are not blank and within its borders; a word that a line end divides is joined."""
    left, low, right, high = page.get_bbox()  # as the places of characters: neither moved nor rotated
    codes = [pdfium.FPDFText_GetUnicode(text, n) for n in range(pdfium.FPDFText_CountChars(text))]
    characters = "".join(chr(code) if code <= sys.maxunicode else "\ufffd" for code in codes)
    start = 0
    for line in characters.split("\n"):
        first, last = start + len(line) - len(line.lstrip()), start + len(line.rstrip()) - 1
        start += len(line) + 1
        if last < first:
            continue
        (x, top), (_, bottom) = _origin(text, first, pdfium), _origin(text, last, pdfium)
        size = _size(text, (first + last) // 2, pdfium)  # the first may be a bullet
        if not all(map(math.isfinite, (x, top, bottom, size))):
            yield line.strip().replace(_DIVIDED, ""), 0.0, 0.0, 0.0
        elif left <= x <= right and low <= top <= high:
            yield line.strip().replace(_DIVIDED, ""), size, top, bottom


def _origin(text: Any, at: int, pdfium: Any) -> tuple[float, float]:
    x, y = ctypes.c_double(), ctypes.c_double()
    pdfium.FPDFText_GetCharOrigin(text, at, x, y)
    return x.value, y.value


def _size(text: Any, at: int, pdfium: Any) -> float:
    matrix = pdfium.FS_MATRIX()
    pdfium.FPDFText_GetMatrix(text, at, matrix)
    size: float = pdfium.FPDFText_GetFontSize(text, at)
    return size * math.hypot(matrix.c, matrix.d)


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
        count += text.count_chars()
        if count > most:
            return {"refused": f"{len(data):,} bytes of PDF with far more text than that: not read"}
        pages.append(list(_lines(page, text.raw, pypdfium2.raw)))
        text.close()
        page.close()
    return {"title": document.get_metadata_value("Title"), "pages": pages}


if __name__ == "__main__":
    _seconds, _memory, _characters = map(int, sys.argv[1:])
    _limit(_seconds, _memory)
    sys.stdout.write(json.dumps(_read(sys.stdin.buffer.read(), _characters)))
