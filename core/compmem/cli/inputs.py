"""Files, folders and standard input as documents, one at a time.

A file or line that cannot be read is reported and left out; the others are still read.
"""

import codecs
import io
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import tee
from pathlib import Path, PurePath
from typing import Any, BinaryIO, Final

from compmem.cli.answer_text import printable
from compmem.cli.formats import FORMATS, Format, format_of, parse
from compmem.cli.json_lines import likely_typos, line_document, parse_line
from compmem.cli.text_decoding import DETECTION_BYTES, BlankError, UnreadableError
from compmem.errors import CompMemError
from compmem.schema import MAX_TITLE_CHARS, Document

__all__ = ["FORMATS", "STDIN", "File", "Format", "InputError", "documents", "file_of", "files", "id_base", "path_id"]

logger = logging.getLogger(__name__)

STDIN: Final = "-"

Report = Callable[["InputError"], None]


class InputError(CompMemError):
    """A file, or a line of one, cannot be read as a document; the message begins with its path."""


@dataclass(frozen=True, slots=True)
class File:
    """A file to read; the path is the given one, or inside it."""

    path: str
    chosen: bool = True
    """It was named by the caller, not found in a folder."""


@dataclass(frozen=True, slots=True)
class FileResult:
    """What one file holds."""

    documents: list[tuple[str, Document]] = field(default_factory=list)
    """Pairs (location in the file, document)."""
    errors: list[InputError] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)


MapFunction = Callable[
    [Callable[[tuple[File, Path]], FileResult | None], Iterable[tuple[File, Path]]],
    Iterable[FileResult | None],
]


def files(sources: Iterable[str], *, report: Report) -> Iterator[File]:
    """The given files, and the files in the given folders.

    A folder is walked in sorted order, without hidden files. Folders of indexes are logged and left out. Symbolic links
    out of the folder are not followed.

    Args:
        sources: Paths; `-` is standard input.
        report: Called with each source that does not exist, is an index, contains no file or cannot be listed.
    """
    for source in sources:
        if source == STDIN:
            yield File(STDIN)
            continue
        try:
            mode = os.stat(source).st_mode
        except FileNotFoundError:
            report(InputError(f"{source}: no such file or folder"))
        except (OSError, ValueError) as error:
            report(InputError(f"{source}: {_reason(error)}"))
        else:
            if stat.S_ISDIR(mode):
                yield from _folder(source, report)
            else:
                yield File(source)


def documents(
    found: Iterable[File],
    *,
    base: Path,
    report: Report,
    stdin: BinaryIO | None = None,
    stdin_format: Format = "txt",
    each: MapFunction = map,
) -> Iterator[Document]:
    """The documents in files, in order, one at a time. Of documents with the same id, only the first is returned.

    Files without text that were found in folders are left out; their number is logged as a warning at the end.

    Args:
        found: The files.
        base: The folder that ids are relative to, see `path_id`.
        report: Called with each file or line that cannot be read.
        stdin: Standard input, in bytes.
        stdin_format: The format of standard input.
        each: Calls a function for items, in order; it may do so in other processes.
    """
    from compmem.ingest.pipeline import content_key

    seen: dict[str, int] = {}
    skipped: Counter[str] = Counter()
    for where, document in _contents(found, base, report, skipped, stdin, stdin_format, each):
        if problem := _storage_problem(document):
            report(InputError(f"{where}: {problem}"))
            continue
        # A line of several files is one document.
        content = content_key(replace(document, metadata={**document.metadata, "path": ""}))
        if document.id not in seen:
            seen[document.id] = content
            yield document
        elif seen[document.id] == content:
            logger.warning("%s: %s is given twice, the second is left out", printable(where), printable(document.id))
        else:
            report(InputError(f"{where}: another document has the id {document.id!r}"))
    if skipped:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(skipped.items())[:8])
        logger.warning("%d file(s) without text left out: %s", skipped.total(), printable(kinds))


def path_id(path: str, base: Path) -> str:
    """The id of a file's document: its real path relative to `base`, or its absolute real path if it is outside.

    It does not depend on the working folder or on links.
    """
    real, base = Path(os.path.realpath(path)), Path(os.path.realpath(base))
    shown = real.relative_to(base) if real.is_relative_to(base) else real
    return os.fsencode(shown.as_posix()).decode("utf-8", "backslashreplace")


def id_base(index: Path) -> Path:
    """The folder from which the ids of an index name files: the one that it lies in, so that both may move together."""
    return index.resolve().parent


def file_of(document: Any) -> str:
    """The file that a document was read from, as ids name files; empty where it was none."""
    path = document.metadata.get("path")
    return path if isinstance(path, str) and path != STDIN else ""


def _storage_problem(document: Document) -> str:
    """Why an index would refuse the document; empty if it would not."""
    from compmem.store import check_document, content_hash

    try:
        check_document(document)
        content_hash(document, ())
    except ValueError as error:
        return str(error)
    return ""


def _reason(error: Exception) -> str:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return " ".join(reason.split())[:300]


def _folder(root: str, report: Report) -> Iterator[File]:
    """The files in a folder, sorted, without hidden ones and without links out of the folder."""
    inside = Path(os.path.realpath(root))
    empty = True

    def unreadable(error: OSError) -> None:
        nonlocal empty
        empty = False
        report(InputError(f"{error.filename}: {_reason(error)}"))

    for folder, folders, names in os.walk(root, onerror=unreadable):
        if "manifest.sqlite" in names or ("shards.json" in names and "shard-000" in folders):
            if folder == root:
                report(InputError(f"{root}: the folder of an index, not of documents"))
            else:
                logger.warning("%s: the folder of an index, left out", printable(folder))
            empty = False
            folders.clear()
            continue
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        for name in sorted(n for n in names if not n.startswith(".")):
            path = os.path.join(folder, name)
            if not Path(os.path.realpath(path)).is_relative_to(inside):
                logger.warning("%s: links out of %s, not followed", printable(path), printable(root))
            elif _is_regular(path, unreadable):
                empty = False
                yield File(path, chosen=False)
    if empty:
        report(InputError(f"{root}: contains no file to read"))


def _is_regular(path: str, unreadable: Callable[[OSError], None]) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except FileNotFoundError:  # a broken link
        return False
    except OSError as error:
        unreadable(error)
        return False


def _contents(
    found: Iterable[File],
    base: Path,
    report: Report,
    skipped: Counter[str],
    stdin: BinaryIO | None,
    stdin_format: Format,
    each: MapFunction,
) -> Iterator[tuple[str, Document]]:
    """The documents in files, each with its location; `each` calls `read_file`, and what that leaves is read here."""
    listed, sent = tee(found)
    for file, result in zip(listed, each(read_file, ((file, base) for file in sent)), strict=False):
        if result is not None:
            skipped.update(result.skipped)
            for error in result.errors:
                report(error)
            yield from result.documents
        elif file.path == STDIN:
            if stdin is None:
                raise ValueError("a source '-' needs stdin=")
            yield from _read(stdin, "", stdin_format, STDIN, report)
        else:
            yield from _file(file, base, report, skipped)


def read_file(task: tuple[File, Path]) -> FileResult | None:
    """What a file holds; None for what is not read at once: JSON lines, standard input, pipes."""
    file, base = task
    if (
        file.path == STDIN
        or not os.path.isfile(file.path)
        or PurePath(file.path).suffix.lower() in (".jsonl", ".ndjson")
    ):
        return None
    result = FileResult()
    result.documents.extend(_file(file, base, result.errors.append, result.skipped))
    return result


def _file(file: File, base: Path, report: Report, skipped: Counter[str]) -> Iterator[tuple[str, Document]]:
    try:
        with io.BufferedReader(io.FileIO(file.path), DETECTION_BYTES) as stream:
            head = stream.peek(DETECTION_BYTES)[:DETECTION_BYTES]
            form = format_of(file.path, head) if head or file.chosen else None
            if form:
                blank = None if file.chosen else skipped
                yield from _read(stream, path_id(file.path, base), form, file.path, report, blank)
            elif file.chosen:
                report(InputError(f"{file.path}: neither text nor HTML, PDF, .docx or .eml"))
            else:
                skipped[_kind(file.path)] += 1
    except OSError as error:
        report(InputError(f"{file.path}: {_reason(error)}"))


def _kind(path: str) -> str:
    """The suffix of a file, or its name if it has none."""
    return PurePath(path).suffix or PurePath(path).name


def _read(
    stream: BinaryIO, id: str, form: Format, shown: str, report: Report, skipped: Counter[str] | None = None
) -> Iterator[tuple[str, Document]]:
    """The documents in one file, each with its place; JSON lines contain several.

    A file without text is counted in `skipped`, or reported if there is no such counter.
    """
    metadata = {"path": id or STDIN, "format": form}
    if form == "jsonl":
        yield from _json_lines(stream, shown, metadata, report)
        return
    data = stream.read()
    try:
        found = parse(form, data, shown)
    except (UnreadableError, ImportError) as error:
        if isinstance(error, BlankError) and skipped is not None:
            skipped[_kind(shown)] += 1
        else:
            report(InputError(f"{shown}: {error}"))
    except Exception as error:  # parsers raise any exception for a damaged file
        report(InputError(f"{shown}: cannot be read as {form.upper()} ({type(error).__name__}: {_reason(error)})"))
    else:
        title = found.title or PurePath(id).stem[:MAX_TITLE_CHARS]
        metadata = {**found.metadata, **metadata}
        yield shown, Document(id=id, title=title, text=found.text, context=found.context, metadata=metadata)


def _json_lines(stream: BinaryIO, shown: str, about: dict[str, Any], report: Report) -> Iterator[tuple[str, Document]]:
    known: dict[str, str] = {}
    for number, line in enumerate(stream, start=1):
        where = f"{shown}, line {number}"
        if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            report(InputError(f"{where}: UTF-16; JSON lines must be UTF-8"))
            return
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if not line.strip():
            continue
        try:
            fields = parse_line(line)
            document = line_document(fields, about)
        except (ValueError, RecursionError) as error:
            report(InputError(f"{where}: {_reason(error)}"))
            continue
        for name, meant in likely_typos(fields, known):
            logger.warning(
                "%s: the name %s is kept as it is; is %r meant?", printable(where), printable(repr(name)), meant
            )
        yield where, document
