"""Lines of JSON as documents."""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

from compmem.cli.record_text import value_text
from compmem.schema import Document

_NAMES: Final = ("id", "title", "context", "text", "metadata")
_OTHER_WORDS: Final = frozenset({"content", "contents"})
"""Common names that are like one of the names above and mean something else."""
_SIMILARITY: Final = 0.8
_MAX_NAME_CHARS: Final = 20
"""Maximum number of characters of a name that may be a mistake for another."""
_MAX_VALUE_CHARS: Final = 1000
"""Maximum number of characters of a value that is metadata besides being text."""


def parse_line(line: bytes) -> Any:
    """The value in a line.

    Raises:
        ValueError: It is not JSON in UTF-8.
    """
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.pos})") from error


def line_document(fields: Any, about: Mapping[str, Any]) -> Document:
    """The document in an object `{"id", "title", "context", "text", "metadata"}`; only the text is required.

    Fields of other names are metadata. An object without a text but with such fields is a record: its text is as in a
    .json file, `name: value; name: value`, and short plain values are metadata too.

    Args:
        fields: The object.
        about: Metadata of the file, which no field replaces.

    Raises:
        ValueError: It is no object or has no text, or a field has the wrong type.
    """
    if not isinstance(fields, Mapping):
        return Document.from_json(fields)
    others = {name: value for name, value in fields.items() if name not in _NAMES}
    named = {name: value for name, value in fields.items() if name in _NAMES}
    if others and fields.get("text") is None:
        named = {name: value for name, value in named.items() if _is_usable(name, value)}
        beside = named.keys() & {"context", "metadata"}
        named["text"] = value_text([{name: value for name, value in fields.items() if name not in beside}])
        others = {name: value for name, value in others.items() if _is_short(value)}
    if fields.keys() - _NAMES and named.get("id") is None:  # lines of one text may differ in other fields
        named["id"] = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]
    document = Document.from_json(named)
    return replace(document, metadata={**others, **document.metadata, **about})


def likely_typos(fields: Mapping[str, Any], known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs (unknown field, known field that it resembles and that the object lacks), each pair once.

    Args:
        fields: The object.
        known: The known field that each unknown field of earlier objects resembles; those of this one are added.
    """
    for name in [name for name in fields if name not in _NAMES]:
        if name not in known:
            known[name] = _similar_field(name.lower()) if len(name) <= _MAX_NAME_CHARS else ""
        if (meant := known[name]) and meant not in fields:
            known[name] = ""
            yield name, meant


def _similar_field(name: str) -> str:
    """The known field that a name in lower case resembles; empty if there is none."""
    if name in _OTHER_WORDS:
        return ""
    if name in _NAMES:
        return name
    return next(iter(difflib.get_close_matches(name, _NAMES[1:], n=1, cutoff=_SIMILARITY)), "")


def _is_usable(name: str, value: Any) -> bool:
    """Whether a field of a record has the type that its name has in a document."""
    if name == "id":
        return isinstance(value, str | int) and not isinstance(value, bool)
    return isinstance(value, Mapping if name == "metadata" else str)


def _is_short(value: Any) -> bool:
    return len(value) <= _MAX_VALUE_CHARS if isinstance(value, str) else not isinstance(value, Mapping | list)
