"""The files of a measurement that a second run continues: rows in JSONL, or one JSON file."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Row = dict[str, Any]
"""The measurements of one question and system."""

Key = tuple[str, ...]
"""What identifies a row: its values of `Rows.names`."""

Kept = TypeVar("Kept")


@dataclass(slots=True)
class Rows:
    """A JSONL file of rows; it only grows."""

    file: Path
    names: tuple[str, ...]
    by_key: dict[Key, Row] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Path, names: tuple[str, ...]) -> "Rows":
        """The rows so far; a last line that a killed run left unfinished is dropped, also from the file.

        Raises:
            ValueError: A line is not a row.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        data = file.read_bytes() if file.exists() else b""
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.truncate(file, whole)
        kept = cls(file, names)
        for number, line in enumerate(data[:whole].split(b"\n")[:-1], 1):  # a text may have other line ends inside
            try:
                kept._keep(json.loads(line))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}:{number}: no row of this measurement ({error})") from error
        return kept

    def of(self, keys: set[Key]) -> list[Row]:
        """The rows with these keys, in the order of the file."""
        return [row for key, row in self.by_key.items() if key in keys]

    def add(self, row: Row) -> None:
        """Adds a row, also to the file."""
        self._keep(row)
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n")

    def _keep(self, row: Row) -> None:
        self.by_key[tuple(str(row[name]) for name in self.names)] = row


def read_progress(
    file: Path, settings: Mapping[str, Any], read: Callable[[Any], tuple[Mapping[str, Any], Kept]]
) -> Kept | None:
    """What a JSON file of results has so far; None if there is no file.

    Args:
        file: The file.
        settings: Everything that changes the figures.
        read: Returns (settings, progress) from the file's content.

    Raises:
        ValueError: It is not such a file, or was measured with other settings.
    """
    if not file.exists():
        return None
    try:
        before, kept = read(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(file)!r} is no result of this measurement: choose another place") from error
    if other := changes(before, settings):
        raise ValueError(f"{str(file)!r} was measured with {other}: choose another place")
    return kept


def changes(before: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """The settings that are not as they were, with both values; empty if there are none."""
    return "; ".join(
        f"{name}={before.get(name)!r}, not {settings.get(name)!r}"
        for name in sorted({*before, *settings})
        if before.get(name) != settings.get(name)
    )


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """The path of a new file, which replaces the file at the end; an error or a killed run leaves the old one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    try:
        yield part
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_whole(file: Path, text: str) -> None:
    """Writes a file as a whole; see `replacing`."""
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")
