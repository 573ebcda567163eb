"""CSV and JSON as text in which every value has its name."""

import csv
import io
import json
import re
from collections.abc import Iterable
from itertools import chain, repeat
from typing import Any, Final

from compmem.cli.text_decoding import UnreadableError

_MAX_NAME_CHARS: Final = 60
"""Maximum number of characters of a name before a value: long names would make the text much longer than the file."""
_QUOTED = re.compile(r'"[^"]*"')
_DELIMITERS: Final = ",;\t|"


def csv_text(text: str) -> str:
    """A table as text: each row is a paragraph, `name: value; name: value`, with names from the first row.

    Raises:
        UnreadableError: A row is not CSV.
    """
    lines = text.lstrip("\n")
    first = _QUOTED.sub("", lines[:10_000].partition("\n")[0])
    rows = csv.reader(io.StringIO(lines), delimiter=max(_DELIMITERS, key=first.count))
    try:
        header = [cell.strip() for cell in next(rows, [])]
        written = [_line(zip(chain(header, repeat("")), row, strict=False)) for row in rows]
    except csv.Error as error:
        raise UnreadableError(f"line {rows.line_num}: {error}") from error
    return "\n\n".join(row for row in written if row) or text


def json_text(text: str) -> str:
    """JSON as text: each object is a paragraph, `name: value; name: value`. Text that is not JSON is unchanged."""
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


def _write(value: Any, name: str, written: list[str]) -> None:
    if isinstance(value, dict):
        plain = _line((key, _scalar(item)) for key, item in value.items() if not isinstance(item, dict | list))
        nested = [(key, item) for key, item in value.items() if isinstance(item, dict | list)]
    elif isinstance(value, list):
        plain = ", ".join(_scalar(item) for item in value if not isinstance(item, dict | list))
        nested = [(name, item) for item in value if isinstance(item, dict | list)]
    else:
        plain, nested = _scalar(value), []
    if plain:
        written.append(_line([(name, plain)]))
    for key, item in nested:
        _write(item, key, written)


def _scalar(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _line(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and values on one line, without empty values."""
    flat = ((" ".join(name[:_MAX_NAME_CHARS].split()), " ".join(value.split())) for name, value in pairs)
    return "; ".join(f"{name}: {value}" if name else value for name, value in flat if value)
