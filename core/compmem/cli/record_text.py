"""CSV and JSON as text in which every value has its name."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain, islice, repeat
from statistics import median_low
from typing import Any, Final

from compmem.cli.text_decoding import UnreadableError

_MAX_NAME_CHARS: Final = 60
"""Maximum number of characters of a name before a value: long names would make the text much longer than the file."""
_QUOTED = re.compile(r'"[^"]*"')
_DELIMITERS: Final = ",;\t|"
_NAMED_DELIMITER: Final = re.compile(r'sep=([^\n"])\n')
"""The first line of some exported tables."""
_FIRST_ROWS: Final = 50
"""Number of rows among which the header is looked for."""
_MAX_PARTS: Final = 8
"""Maximum number of values of an object that is written on the line of the record that it is part of."""
_TIME_NAME: Final = re.compile(
    r"(?:.{0,60}[_ ])?(?:ts|timestamp|at|(?:created|updated|modified|sent)_?(?:at|on))|created|updated|modified",
    re.IGNORECASE,
)
"""Names of points in time; a `time` may also be a duration."""
_EPOCH: Final = re.compile(r"(1\d{9})(?:\.\d{1,9}|\d{3})?")
"""Seconds or milliseconds since 1970, of the years 2001 to 2033."""


def csv_text(text: str) -> str:
    """A table as text: each row is a paragraph, `name: value; name: value`, with names from the row of the header.

    Rows above the header, such as a title, have a cell or two where most rows have many, and stay as they are.

    Raises:
        UnreadableError: A row is not CSV.
    """
    lines = text.lstrip("\n")
    if named := _NAMED_DELIMITER.match(lines):
        lines = lines[named.end() :]
    mark = named[1] if named else _delimiter(lines)
    rows = csv.reader(io.StringIO(lines), delimiter=mark, skipinitialspace=mark != " ")
    filled = (row for row in rows if any(cell.strip() for cell in row))
    try:
        first = list(islice(filled, _FIRST_ROWS))
        head = _header_place(first)
        header = [cell.strip() for cell in first[head]] if first else []
        written = [_line(("", cell) for cell in row) for row in first[:head]]
        body = chain(first[head + 1 :], filled)
        written.extend(_line(zip(chain(header, repeat("")), row, strict=False)) for row in body)
    except csv.Error as error:
        raise UnreadableError(f"line {rows.line_num}: {error}") from error
    return "\n\n".join(written) or text


def _delimiter(lines: str) -> str:
    """The mark that most of the first lines have equally often, outside quotes; of several, the most frequent one."""
    whole, _, _ = _QUOTED.sub("", lines[:10_000]).rpartition("\n")
    counted = [line for line in whole.split("\n") if line] or [lines[:10_000]]

    def regularity(mark: str) -> tuple[int, int]:
        counts = Counter(count for line in counted if (count := line.count(mark)))
        return max(((lines, count) for count, lines in counts.items()), default=(0, 0))

    return max(_DELIMITERS, key=regularity)


def _header_place(table: Sequence[Sequence[str]]) -> int:
    """Index of the first row with more than half as many filled cells as most rows have; 0 if there is none."""
    filled = [sum(bool(cell.strip()) for cell in row) for row in table]
    enough = max(2, median_low(filled) // 2 + 1) if filled else 0
    return next((place for place, count in enumerate(filled) if count >= enough), 0)


def json_text(text: str) -> str:
    """JSON as text: each object is a paragraph, `name: value; name: value`. Text that is not JSON is unchanged.

    Small objects stand on the line of a record, which is an item of a list. Seconds since 1970 under a name such as
    `created_at` or `ts` are written as date and time.
    """
    try:
        return value_text(json.loads(text))
    except (ValueError, RecursionError):
        return text


def value_text(value: Any) -> str:
    """A JSON value as text, as in `json_text`.

    Raises:
        RecursionError: It is nested too deeply.
    """
    written: list[str] = []
    _write(value, "", written)
    return "\n\n".join(written)


def _write(value: Any, name: str, written: list[str], *, is_record: bool = False) -> None:
    if isinstance(value, dict):
        items = list(_flat_items(value)) if is_record else list(value.items())
        plain = _line((key, _named_scalar(key, item)) for key, item in items if not isinstance(item, dict | list))
        nested = [(key, item) for key, item in items if isinstance(item, dict | list)]
    elif isinstance(value, list):
        plain = ", ".join(_scalar(item) for item in value if not isinstance(item, dict | list))
        nested = [(name, item) for item in value if isinstance(item, dict | list)]
    else:
        plain, nested = _scalar(value), []
    if plain:
        written.append(_line([(name, plain)]))
    for key, item in nested:
        _write(item, key, written, is_record=isinstance(value, list))


def _flat_items(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The values of a record, and those of the small objects in it."""
    for key, item in record.items():
        small = isinstance(item, dict) and len(item) <= _MAX_PARTS
        if small and not any(isinstance(part, dict | list) for part in item.values()):
            yield from ((f"{key} {name}", part) for name, part in item.items())
        else:
            yield key, item


def _named_scalar(name: str, value: Any) -> str:
    """A value as text; a time since 1970 as date and time, in UTC."""
    text = _scalar(value)
    if _TIME_NAME.fullmatch(name) and (seconds := _EPOCH.fullmatch(text)):
        return datetime.fromtimestamp(int(seconds[1]), UTC).strftime("%Y-%m-%d %H:%M:%S")
    return text


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _line(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values on one line, without empty values."""
    flat = ((" ".join(name[:_MAX_NAME_CHARS].split()), " ".join(value.split())) for name, value in pairs)
    return "; ".join(f"{name}: {value}" if name else value for name, value in flat if value)
