"""Files, folders and standard input as documents, one at a time.

Formats are read by libraries that are kept well: Beautiful Soup for HTML, pypdf for PDF. A file that cannot be read is
reported and left out; the others go on.
"""

import codecs
import io
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Final, Literal, get_args

from compmem.errors import CompMemError
from compmem.schema import Document
from compmem.trace import printable

logger = logging.getLogger(__name__)

Format = Literal["txt", "md", "html", "pdf", "jsonl"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
SUFFIXES: Final[dict[str, Format]] = {
    ".txt": "txt", ".text": "txt", ".rst": "txt",
    ".md": "md", ".markdown": "md",
    ".html": "html", ".htm": "html", ".xhtml": "html",
    ".pdf": "pdf",
    ".jsonl": "jsonl", ".ndjson": "jsonl",
}  # fmt: skip
STDIN: Final = "-"

Report = Callable[["InputError"], None]

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_FRONT_TITLE = re.compile(r"\A---[ \t]*\n(?:.*\n){0,50}?title:[ \t]*(.+)\n(?:.*\n){0,50}?---[ \t]*$", re.MULTILINE)
_ATX = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)[ \t]*#*$")
_UNDERLINE = re.compile(r"(=|-){3,}[ \t]*$")
_FENCE = re.compile(r" {0,3}(?:```|~~~)")


class InputError(CompMemError):
    """A file cannot be read as a document; the message begins with its path."""


def documents(
    sources: Iterable[str], *, report: Report, stdin: BinaryIO | None = None, stdin_format: Format = "txt"
) -> Iterator[Document]:
    """The documents in files, folders and standard input, in the order given; only one is held at a time.

    A folder is walked in sorted order without hidden files; symbolic links that leave it are not followed. Of documents
    with the same id only the first is given.

    Args:
        sources: Paths; `-` is standard input.
        report: Told of each file or line that is left out because it cannot be read.
        stdin: Standard input, as bytes.
        stdin_format: What standard input holds.
    """
    seen: dict[str, int] = {}
    for document in _each(sources, report, stdin, stdin_format):
        content = hash((document.title, document.text))
        if problem := _unfit(document):
            report(InputError(f"{document.metadata['path']}: {problem}"))
        elif document.id not in seen:
            seen[document.id] = content
            yield document
        elif seen[document.id] == content:
            logger.warning("%s: given twice, the second is left out", printable(document.id))
        else:
            report(InputError(f"{document.metadata['path']}: another document has the id {document.id!r}"))


def _unfit(document: Document) -> str:
    """Why an index would not take the document; empty where it would."""
    if "\0" in document.id:
        return "the id holds a NUL character"
    try:
        f"{document.id}{document.title}{document.text}".encode()
    except UnicodeEncodeError as error:
        return f"holds a lone surrogate, {error.object[error.start]!r}"
    return ""


def _each(sources: Iterable[str], report: Report, stdin: BinaryIO | None, stdin_format: Format) -> Iterator[Document]:
    for source in sources:
        if source == STDIN:
            if stdin is None:
                raise ValueError("a source '-' needs stdin=")
            yield from _read(stdin, STDIN, stdin_format, report)
            continue
        path = Path(source)
        name = _name(path)
        if path.is_dir():
            yield from _folder(path, name, report)
        elif not path.exists():
            report(InputError(f"{source}: no such file or folder"))
        elif (found := _format(path)) is None:
            report(InputError(f"{source}: unknown kind of file; known are {' '.join(SUFFIXES)}"))
        else:
            yield from _file(path, str(name), found, report)


def count_files(sources: Iterable[str]) -> int:
    """How many files `documents` would open."""
    count = 0
    for source in sources:
        path = Path(source)
        if source != STDIN and path.is_dir():
            count += sum(_format(found) is not None for found in _walk(path, lambda _: None))
        else:
            count += 1
    return count


def _name(path: Path) -> PurePosixPath:
    """The path as ids begin with it: from the working folder where it lies within, else from its own last part."""
    absolute = Path(os.path.abspath(path))
    inside = absolute.is_relative_to(Path.cwd())
    shown = absolute.relative_to(Path.cwd()) if inside else Path(absolute.name)
    return PurePosixPath(os.fsencode(shown.as_posix()).decode("utf-8", "replace"))


def _format(path: Path) -> Format | None:
    return SUFFIXES.get(path.suffix.lower())


def _folder(root: Path, name: PurePosixPath, report: Report) -> Iterator[Document]:
    skipped: dict[str, int] = {}
    for path in _walk(root, report):
        if found := _format(path):
            yield from _file(path, str(name / _name_within(path, root)), found, report)
        else:
            skipped[path.suffix or path.name] = skipped.get(path.suffix or path.name, 0) + 1
    if skipped:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(skipped.items())[:8])
        logger.warning("%s: %d file(s) of unknown kinds left out: %s", root, sum(skipped.values()), kinds)


def _name_within(path: Path, root: Path) -> PurePosixPath:
    return PurePosixPath(os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "replace"))


def _walk(root: Path, report: Report) -> Iterator[Path]:
    """The files of a folder, sorted; those that are hidden, or link to a place outside, left out."""
    inside = root.resolve()

    def unreadable(error: OSError) -> None:
        report(InputError(f"{error.filename}: {error.strerror}"))

    for folder, folders, files in os.walk(root, onerror=unreadable):
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for file in sorted(files):
            path = Path(folder, file)
            if file.startswith(".") or not path.is_file():
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                logger.warning("%s: leads out of %s, not followed", path, root)
                continue
            yield path


def _file(path: Path, name: str, form: Format, report: Report) -> Iterator[Document]:
    try:
        with path.open("rb") as stream:
            yield from _read(stream, name, form, report)
    except OSError as error:
        report(InputError(f"{path}: {error.strerror or error}"))


def _read(stream: BinaryIO, name: str, form: Format, report: Report) -> Iterator[Document]:
    """The documents in one file; many where it is JSON lines."""
    about = {"path": name, "format": form}
    if form == "jsonl":
        yield from _json_lines(stream, name, about, report)
        return
    try:
        title, text = _PARSERS[form](stream.read(), name)
    except InputError as error:
        report(error)
        return
    if not text.strip():
        report(InputError(f"{name}: holds no text"))
        return
    if name == STDIN:
        yield Document(title=title, text=text, metadata=about)
    else:
        yield Document(id=name, title=title or PurePosixPath(name).stem, text=text, metadata=about)


def _json_lines(stream: BinaryIO, name: str, about: dict[str, Any], report: Report) -> Iterator[Document]:
    for number, line in enumerate(stream, start=1):
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        try:
            yield _json_document(line, about)
        except (ValueError, RecursionError) as error:
            report(InputError(f"{name}, line {number}: {' '.join(str(error).split())}"))


def _json_document(line: bytes, about: dict[str, Any]) -> Document:
    """The document in a line `{"id", "title", "text", "metadata"}`; all but the text may be missing."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from error
    if not isinstance(fields, dict):
        raise ValueError(f"a JSON object is wanted, not {type(fields).__name__}")
    if unknown := sorted(set(fields) - {"id", "title", "text", "metadata"}):
        raise ValueError(f"unknown name {unknown[0]!r}; known are 'id', 'title', 'text', 'metadata'")
    text, title, key = fields.get("text"), fields.get("title") or "", fields.get("id", "")
    metadata = fields.get("metadata") or {}
    if not isinstance(text, str) or not text.strip():
        raise ValueError("'text' is missing or empty")
    if not isinstance(title, str) or isinstance(key, bool) or not isinstance(key, str | int):
        raise ValueError("'title' must be text, 'id' text or a whole number")
    if not isinstance(metadata, dict):
        raise ValueError("'metadata' must be a JSON object")
    return Document(id=str(key), title=title, text=text, metadata={**about, **metadata})


def decode(data: bytes, name: str) -> str:
    """Bytes as text: by their byte order mark, else UTF-8, else Latin-1 with a warning.

    Raises:
        InputError: The bytes are no text.
    """
    encoding = next((encoding for bom, encoding in _BOMS if data.startswith(bom)), "utf-8")
    if encoding == "utf-8" and b"\0" in data[:8192]:
        raise InputError(f"{name}: binary data, not text")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise InputError(f"{name}: not {encoding} as its first bytes say ({error.reason})") from error
        logger.warning("%s: not UTF-8, read as Latin-1", name)
        text = data.decode("latin-1")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _plain(data: bytes, name: str) -> tuple[str, str]:
    text = decode(data, name)
    return _first_heading(text, atx=False), text


def _markdown(data: bytes, name: str) -> tuple[str, str]:
    text = decode(data, name)
    front = _FRONT_TITLE.match(text)
    return (front[1].strip(" \t\"'") if front else _first_heading(text, atx=True)), text


def _first_heading(text: str, *, atx: bool) -> str:
    """The first line that is marked or underlined as a heading, outside code."""
    fenced = False
    before = ""
    for line in io.StringIO(text):
        line = line.rstrip("\n")[:1000]
        if atx and _FENCE.match(line):
            fenced = not fenced
        elif fenced:
            continue
        elif atx and (match := _ATX.match(line)) and match[1]:
            return match[1].strip()
        elif before.strip() and not before.startswith((" ", "\t", "-", "=")) and _UNDERLINE.match(line):
            return before.strip()
        before = "" if fenced else line
    return ""


def _html(data: bytes, name: str) -> tuple[str, str]:
    from compmem.cli.html import page_text

    if b"\0" in data[:8192] and not data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{name}: binary data, not text")
    try:
        return page_text(data)
    except (ValueError, AssertionError, RecursionError) as error:
        raise InputError(f"{name}: cannot be read as HTML ({error})") from error


def _pdf(data: bytes, name: str) -> tuple[str, str]:
    """Title and text; a blank line between pages."""
    try:
        import pypdf
    except ImportError as error:
        raise ImportError('reading PDF needs pypdf: pip install "compmem[formats]"') from error

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise InputError(f"{name}: the PDF is encrypted")
        title = (reader.metadata.title if reader.metadata else None) or ""
        pages = [page.extract_text().strip() for page in reader.pages]
    except InputError:
        raise
    except Exception as error:  # a broken PDF fails in pypdf with any exception
        said = " ".join(str(error).split())[:200]
        raise InputError(f"{name}: cannot be read as PDF ({type(error).__name__}: {said})") from error
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise InputError(f"{name}: the PDF holds no text (scanned pages?)")
    return " ".join(str(title).split()), text


_PARSERS: Final[dict[Format, Callable[[bytes, str], tuple[str, str]]]] = {
    "txt": _plain,
    "md": _markdown,
    "html": _html,
    "pdf": _pdf,
}
