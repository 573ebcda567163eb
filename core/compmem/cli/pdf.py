"""Title and text of a PDF.

PDFium reads it in a process of its own (`pdf_process`), for it cannot be stopped from within: a few hundred bytes can
describe a page that takes hours or all memory, and a fault of native code ends the process.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from compmem.cli.pdf_layout import Line, pages_text
from compmem.cli.text_decoding import UnreadableError

_SCRIPT: Final = Path(__file__).with_name("pdf_process.py")
_CPU_SECONDS: Final = 20
"""Processor time for a small file."""
_SPEED: Final = 50_000
"""Bytes of a larger one for each further second."""
_WAIT: Final = 10
"""How many times as long a busy machine may take."""
_MEMORY: Final = 2 << 30
"""Bytes of memory for a small file."""
_COPIES: Final = 8
"""How many times as much memory as bytes a larger one may take besides."""
_TEXT: Final = 4 << 20
"""Characters of text that a small file may have."""
_GROWTH: Final = 50
"""How many times as many characters as bytes a larger one may have."""


def pdf_text(data: bytes) -> tuple[str, str]:
    """Title and text of a PDF, with a blank line between paragraphs. Words that a line end divides are joined.

    Between pages is a blank line too, unless a sentence goes on. Running headers and footers are left out.

    Raises:
        UnreadableError: It is encrypted or damaged, has no text, or takes too much time or memory, or ends its parser.
        ImportError: `pypdfium2` is not installed.
    """
    if find_spec("pypdfium2") is None:
        raise ImportError('reading PDF needs pypdfium2: pip install "compmem[formats]"')
    read = _run_pdf_process(data)
    if refused := read.get("refused"):
        raise UnreadableError(refused)
    text = pages_text([[Line(*line) for line in page] for page in read["pages"]])
    if not text.strip():
        raise UnreadableError("the PDF contains no text (scanned pages?)")
    return " ".join(read["title"].split()), text


def _run_pdf_process(data: bytes) -> dict[str, Any]:
    """What the process writes."""
    seconds = _CPU_SECONDS + len(data) // _SPEED
    limits = (seconds, _MEMORY + _COPIES * len(data), max(_TEXT, _GROWTH * len(data)))
    # -P: the modules of this folder do not stand in for installed ones of the same names.
    command = [sys.executable, "-P", str(_SCRIPT), *map(str, limits)]
    try:
        process = subprocess.run(command, input=data, capture_output=True, timeout=_WAIT * seconds, check=True)  # noqa: S603
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        raise UnreadableError("the PDF takes too long or too much memory, or ends its parser: not read") from error
    read: dict[str, Any] = json.loads(process.stdout)
    return read
