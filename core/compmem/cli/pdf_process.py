"""Reads a PDF from standard input, writes its title and pages as JSON, or why it is refused.

This is a script, started by `pdf`; importing nothing of the library, it starts in a tenth of a second. Arguments: the
processor seconds, the bytes of memory and the characters of text that it may take.
"""

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any, Final

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


def _pages(document: Any) -> Iterator[str]:
    for page in document:
        text = page.get_textpage()
        yield text.get_text_bounded().replace("\r\n", "\n").replace(_DIVIDED, "")
        text.close()
        page.close()


def _read(data: bytes, most: int) -> dict[str, Any]:
    import pypdfium2

    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        if error.err_code == pypdfium2.raw.FPDF_ERR_PASSWORD:
            return {"refused": "the PDF is encrypted"}
        return {"refused": f"cannot be read as PDF ({error})"}
    pages, count = list[str](), 0
    for page in _pages(document):
        count += len(page)
        if count > most:
            return {"refused": f"{len(data):,} bytes of PDF with far more text than that: not read"}
        pages.append(page)
    return {"title": document.get_metadata_value("Title"), "pages": pages}


if __name__ == "__main__":
    _seconds, _memory, _characters = map(int, sys.argv[1:])
    _limit(_seconds, _memory)
    sys.stdout.write(json.dumps(_read(sys.stdin.buffer.read(), _characters)))
