"""File formats, and the title, text and other facts of a file.

The parsers are lxml for HTML, PDFium for PDF and mammoth for .docx.
"""

import contextlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import PurePath
from typing import Any, Final, Literal, get_args
from xml.parsers import expat

from compmem.cli.html_text import page_text
from compmem.cli.mail import mail_text
from compmem.cli.pdf import pdf_text
from compmem.cli.record_text import csv_text, json_text
from compmem.cli.text_decoding import DETECTION_BYTES, BlankError, FileContents, UnreadableError, decode, is_text
from compmem.schema import MAX_TITLE_CHARS
from compmem.text.line_runs import ATX, MAX_LINE_CHARS, open_fence

Format = Literal["txt", "md", "html", "pdf", "docx", "eml", "csv", "json", "jsonl"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
SUFFIXES: Final[dict[str, Format]] = {
    ".txt": "txt", ".text": "txt", ".rst": "txt",
    ".md": "md", ".markdown": "md",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".pdf": "pdf",
    ".docx": "docx",
    ".eml": "eml",
    ".csv": "csv", ".tsv": "csv",
    ".json": "json",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
"""Formats by suffix; for other suffixes the first bytes decide."""

_MAX_DOCX_BYTES: Final = 4 << 20
"""Bytes that a small .docx file may have after unpacking."""
_MAX_DOCX_RATIO: Final = 30
"""How many times as large as the file its parts may be together."""
_MAX_OPEN_FIELDS: Final = 1000
"""Maximum number of .docx fields without an end mark: each later field searches them all."""
_MAX_FRONT_MATTER_LINES: Final = 50
_STYLES: Final = "p[style-name='Title'] => h1:fresh\np[style-name='Subtitle'] => h2:fresh"
_GENERIC_NAMES: Final = frozenset(("readme", "index"))
"""Names of files that say nothing about what is in them."""
_UNDERLINE = re.compile(r"(=|-){3,}[ \t]*$")
_NAME = re.compile(r"[\w-]+:")
"""The name of a value in front matter."""


def format_of(name: str, head: bytes) -> Format | None:
    """The format of a file with this name and these first bytes; None if it has no readable text."""
    if known := SUFFIXES.get(PurePath(name).suffix.lower()):
        return known
    if head.startswith(b"%PDF-"):
        return "pdf"
    if head.startswith((b"{\\rtf", b"%!PS")) or not is_text(head[:DETECTION_BYTES]):
        return None
    return "html" if head[:1000].lstrip().lower().startswith((b"<!doctype html", b"<html")) else "txt"


def parse(form: Format, data: bytes, name: str) -> FileContents:
    """What a file contains that is one document.

    Raises:
        BlankError: It contains no text.
        UnreadableError: It cannot be read.
        ImportError: The parser of the format is not installed.
        Exception: Whatever the parser raises for a damaged file.
    """
    found = FileContents(*_PARSERS[form](data, name))
    if not found.text.strip():
        raise BlankError("contains no text")
    return found._replace(title=found.title[:MAX_TITLE_CHARS])


def _plain(data: bytes, name: str) -> tuple[str, str]:
    text = decode(data, name)
    path = PurePath(name)
    if path.suffix and path.suffix.lower() not in SUFFIXES:
        return path.name, text  # in code, a line above a rule is not a heading
    return next((title for _, title in _headings(text, atx=False)), ""), text


def _markdown(data: bytes, name: str) -> tuple[str, str]:
    text = decode(data, name)
    named = PurePath(name).stem.lower() not in _GENERIC_NAMES
    title, body = _front_matter(text)
    return title or _first_heading(body, only=named), text


def _first_heading(text: str, *, only: bool) -> str:
    """The first heading; if `only`, not where several have the highest level: then each is about a part of the file."""
    found = list(_headings(text, atx=True))
    several = only and [level for level, _ in found].count(1) > 1
    return "" if several or not found else found[0][1]


def _front_matter(text: str) -> tuple[str, str]:
    """The title in the front matter, and the text after it.

    Front matter is what stands between two lines `---` at the beginning of a Markdown file. It begins with the name of
    a value, or has a title: other text may stand between rules too.
    """
    lines = io.StringIO(text)
    title, is_named = "", False
    if next(lines, "").rstrip() == "---":
        for number, line in enumerate(islice(lines, _MAX_FRONT_MATTER_LINES)):
            if line.rstrip() == "---":
                return (title, lines.read()) if title or is_named else ("", text)
            is_named = is_named or (number == 0 and _NAME.match(line) is not None)
            if line.startswith("title:"):
                title = line.removeprefix("title:")[:1000].strip(" \t\n\"'")
    return "", text


def _headings(text: str, *, atx: bool) -> Iterator[tuple[int, str]]:
    """The headings outside code, with `#` or underlined, each with its level from 1."""
    commented = False
    fence = before = ""
    for line in io.StringIO(text):
        line = line.rstrip("\n")[:MAX_LINE_CHARS]
        above, before = before, ""
        if atx and not fence and (commented or line.lstrip().startswith("<!--")):
            commented = "-->" not in line
        elif atx and (fence or open_fence(line)):
            fence = open_fence(line, fence)
        elif atx and (match := ATX.match(line)) and (title := match[2].rstrip("#").strip()):
            yield len(match[1]), title
        elif above.strip() and not above.startswith((" ", "\t", "-", "=")) and (match := _UNDERLINE.match(line)):
            yield 1 if match[1] == "=" else 2, above.strip()
        else:
            before = line


def _csv(data: bytes, name: str) -> tuple[str, str]:
    return "", csv_text(decode(data, name))


def _json(data: bytes, name: str) -> tuple[str, str]:
    return "", json_text(decode(data, name))


def _html(data: bytes, name: str) -> tuple[str, str]:
    return page_text(decode(data, name, html=True))


def _docx(data: bytes, name: str) -> tuple[str, str]:
    """Title and text, without pictures."""
    try:
        import mammoth
    except ImportError as error:
        raise ImportError('reading .docx needs mammoth: pip install "compmem[formats]"') from error

    with zipfile.ZipFile(io.BytesIO(data)) as parts:
        unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > max(_MAX_DOCX_BYTES, _MAX_DOCX_RATIO * len(data)):
            raise UnreadableError(f"{len(data):,} bytes that unpack to {unpacked:,}: not read")
        for part in parts.infolist():
            _check_part(parts.read(part))
    read = mammoth.convert_to_html(
        io.BytesIO(data), convert_image=lambda _: [], style_map=_STYLES, include_embedded_style_map=False
    )
    return page_text(read.value)


def _check_part(content: bytes) -> None:
    """Refuse XML with many open fields or a document type definition, whose entities unpack after sizes are checked."""
    opened = 0

    def doctype(*_: Any) -> None:
        raise UnreadableError("a part has a document type definition: not read")

    def start(name: str, attributes: dict[str, str]) -> None:
        nonlocal opened
        if name.endswith("fldChar"):
            kinds = [value for key, value in attributes.items() if key.endswith("fldCharType")]
            opened += ("begin" in kinds) - ("end" in kinds)
            if opened > _MAX_OPEN_FIELDS:
                raise UnreadableError("has too many fields without an end")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = doctype
    parser.StartElementHandler = start
    with contextlib.suppress(expat.ExpatError, LookupError, ValueError):  # a picture, an unknown encoding
        parser.Parse(content, True)


def _pdf(data: bytes, name: str) -> tuple[str, str]:
    return pdf_text(data)


_PARSERS: Final[dict[Format, Callable[[bytes, str], FileContents | tuple[str, str]]]] = {
    "txt": _plain,
    "md": _markdown,
    "html": _html,
    "pdf": _pdf,
    "docx": _docx,
    "eml": mail_text,
    "csv": _csv,
    "json": _json,
}
