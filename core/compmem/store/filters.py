"""Metadata filters: plain JSON, compiled once and applied to the metadata of every document.

`{"year": 2024}` is equality; `{"year": {">=": 2020, "<": 2024}}` is both; a list at the top is `and`;
`{"and": [...]}`, `{"or": [...]}` and `{"not": {...}}` nest. A key of the metadata that is itself called `and`, `or`
or `not` is reached by giving it operators: `{"or": {"==": 1}}`, `{"not": {"in": [1, 2]}}`.

* Keys: a missing one counts as null, so `!=` and `not in` are true for it. `author.name` is the value `name` in the
  mapping `author`, unless the metadata has a key with exactly that name. `document_id` and `title` are the document's
  own, unless its metadata has these keys.
* Numbers compare with numbers, texts with texts by code point; true is not 1. Texts are compared in Unicode's
  composed form (NFC), whichever form either side has.
* Dates: two ISO texts, `2024-05-01` or `2024-05-01T10:00` with or without seconds and offset, are compared as times.
  A time without an offset is in UTC, and a date is its midnight. A `date` or `datetime` in a filter is converted to ISO
  text, as in metadata.
* Operands are converted like metadata (see `compmem.metadata.to_json_value`): a `Decimal` becomes a number,
  a `UUID` text.

The time is linear in the documents and in the conditions, each of which is tested once per distinct value. There may be
`MAX_CONDITIONS` conditions on `MAX_KEYS` keys. Values are never inserted into SQL text.
"""

import math
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from compmem.metadata import to_json_value
from compmem.store.blocks import BATCH, Numbers, parse_metadata
from compmem.store.columns import Column, Hits
from compmem.store.manifest import Rows, storable
from compmem.text.unicode import nfc

MAX_FILTER_DEPTH: Final = 32
"""Maximum number of levels of nesting in a filter."""

MAX_CONDITIONS: Final = 1000
"""Maximum number of conditions of a filter; a list of any length is one."""

MAX_KEY_CHARS: Final = 1000
"""Maximum number of characters of a key."""

MAX_KEYS: Final = 100
"""Maximum number of keys of a filter."""

_MISSING: Final = object()
_BATCHES: Final = "SELECT key, id, title, metadata FROM documents WHERE key > ? ORDER BY key LIMIT ?"


@dataclass(frozen=True, slots=True)
class Condition:
    """A test of the value under a key."""

    key: str
    operator: str
    operand: Any


@dataclass(frozen=True, slots=True)
class Group:
    """A conjunction or disjunction of parts."""

    word: Literal["AND", "OR"]
    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """The negation of a part."""

    part: "Node"


Node = Condition | Group | Not


def compile_filter(conditions: Mapping[str, Any] | Sequence[Any] | Node) -> Node:
    """A compiled filter; equal filters give equal results, and a compiled one is returned as it is.

    Raises:
        ValueError: An operator is unknown, a value has a type that it does not accept, or the filter is too large.
    """
    if isinstance(conditions, Node):
        return conditions
    node = _compile(conditions, 0)
    keys = list(_keys(node))
    for what, count, most in (("conditions", len(keys), MAX_CONDITIONS), ("keys", len(set(keys)), MAX_KEYS)):
        if count > most:
            raise ValueError(f"a filter may have {most} {what}, this one has {count}")
    return node


def admitted_documents(node: Node, rows: Rows) -> Numbers:
    """Keys of the documents that a filter admits, ascending.

    Raises:
        CorruptStoreError: The metadata of a document cannot be read.
    """
    keys, columns = _read_columns(list(dict.fromkeys(_keys(node))), rows)
    return keys[_mask(node, columns, len(keys))]


def _keys(node: Node) -> Iterator[str]:
    if isinstance(node, Condition):
        yield node.key
    for part in node.parts if isinstance(node, Group) else [node.part] if isinstance(node, Not) else []:
        yield from _keys(part)


def _read_columns(keys_to_read: Sequence[str], rows: Rows) -> tuple[Numbers, dict[str, Column]]:
    """The keys of all documents, ascending, and their values under each requested key."""
    keys: list[int] = []
    held: dict[str, list[Any]] = {key: [] for key in keys_to_read}
    if not keys_to_read:
        return np.array([key for (key,) in rows("SELECT key FROM documents ORDER BY key")], np.int64), {}
    while found := rows(_BATCHES, keys[-1] if keys else 0, BATCH):
        for key, document_id, title, text in found:
            keys.append(key)
            own, metadata = {"document_id": document_id, "title": title}, parse_metadata(text, document_id)
            composed: dict[int, dict[str, Any]] = {}
            for name, values in held.items():
                value = _find(metadata, name, composed)
                values.append(own.get(name) if value is _MISSING else value)
    return np.array(keys, np.int64), {name: Column(values) for name, values in held.items()}


def _find(metadata: Mapping[str, Any], key: str, composed: dict[int, dict[str, Any]]) -> Any:
    """The value under a key; `composed` keeps, by the `id` of a mapping, its values by composed names."""
    while True:
        value = _get(metadata, key, composed)
        head, dot, rest = key.partition(".")
        if value is not _MISSING or not dot:
            return value
        inner = _get(metadata, head, composed)
        if not isinstance(inner, Mapping):
            return _MISSING
        metadata, key = inner, rest


def _get(metadata: Mapping[str, Any], key: str, composed: dict[int, dict[str, Any]]) -> Any:
    if key in metadata or key.isascii():
        return metadata.get(key, _MISSING)
    if id(metadata) not in composed:
        composed[id(metadata)] = {nfc(name): value for name, value in metadata.items()}
    return composed[id(metadata)].get(key, _MISSING)


def _mask(node: Node, columns: Mapping[str, Column], documents: int) -> Hits:
    if isinstance(node, Condition):
        return columns[node.key].mask(node.operator, node.operand)
    if isinstance(node, Not):
        return ~_mask(node.part, columns, documents)
    out: Hits = np.full(documents, node.word == "AND")
    for part in node.parts:
        found = _mask(part, columns, documents)
        out = out & found if node.word == "AND" else out | found
    return out


def _compile(conditions: Any, depth: int) -> Node:
    if depth > MAX_FILTER_DEPTH:
        raise ValueError(f"a filter may be nested {MAX_FILTER_DEPTH} levels deep, this one is deeper")
    if _is_list(conditions):
        return Group("AND", tuple(_compile(part, depth + 1) for part in conditions))
    if not isinstance(conditions, Mapping):
        raise ValueError(f"a filter is a mapping of keys to values or operators, not {reprlib.repr(conditions)}")
    return _all_of([part for key, value in conditions.items() for part in _entry(key, value, depth)])


def _entry(key: Any, value: Any, depth: int) -> list[Node]:
    if not isinstance(key, str):
        raise ValueError(f"filter key {key!r} must be a string")
    if len(key) > MAX_KEY_CHARS or key.count(".") > MAX_FILTER_DEPTH:
        raise ValueError(
            f"filter key {reprlib.repr(key)} must have at most {MAX_KEY_CHARS} characters, {MAX_FILTER_DEPTH} dots"
        )
    by_operator = isinstance(value, Mapping) and bool(value) and all(name in _OPERATORS for name in value)
    if key in ("and", "or") and not by_operator:
        if not _is_list(value) or not value:
            raise ValueError(f"filter {key!r} takes a list of filters, not {reprlib.repr(value)}")
        return [Group("AND" if key == "and" else "OR", tuple(_compile(part, depth + 1) for part in value))]
    if key == "not" and not by_operator:
        return [Not(_compile(value, depth + 1))]
    if not isinstance(value, Mapping):
        return [_operated(key, "==", value)]
    if not value:
        raise ValueError(f"filter {key!r} has no operator; there are {_LISTED}")
    return [_operated(key, operator, operand) for operator, operand in value.items()]


def _all_of(parts: list[Node]) -> Node:
    return parts[0] if len(parts) == 1 else Group("AND", tuple(parts))


def _operated(key: str, operator: Any, operand: Any) -> Node:
    if operator not in _OPERATORS:
        raise ValueError(f"unknown filter operator {operator!r} for {key!r}; there are {_LISTED}")
    return _OPERATORS[operator](_text(key, key), operator, operand)


def _equal(key: str, operator: str, operand: Any) -> Node:
    return Condition(key, "in", (_scalar(key, operator, operand),))


def _unequal(key: str, operator: str, operand: Any) -> Node:
    return Not(_equal(key, operator, operand))


def _listed(key: str, operator: str, operand: Any) -> Condition:
    if not _is_list(operand):
        raise ValueError(f"filter {key!r}: {operator!r} takes a list, not {reprlib.repr(operand)}")
    return Condition(key, operator, tuple(_scalar(key, operator, value) for value in operand))


def _not_in(key: str, operator: str, operand: Any) -> Node:
    found = _listed(key, operator, operand)
    return Not(Condition(found.key, "in", found.operand))


def _ordered(key: str, operator: str, operand: Any) -> Node:
    value = _plain(operand)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"filter {key!r}: {operator!r} takes a number or a string, not {reprlib.repr(operand)}")
    return Condition(key, operator, _scalar(key, operator, value))


def _contains(key: str, operator: str, operand: Any) -> Node:
    return Condition(key, operator, _scalar(key, operator, operand))


def _text_match(key: str, operator: str, operand: Any) -> Node:
    if not isinstance(operand, str):
        raise ValueError(f"filter {key!r}: {operator!r} takes a string, not {reprlib.repr(operand)}")
    return Condition(key, operator, _text(key, operand))


def _is_empty(key: str, operator: str, operand: Any) -> Node:
    if not isinstance(operand, bool):
        raise ValueError(f"filter {key!r}: {operator!r} takes true or false, not {reprlib.repr(operand)}")
    return Condition(key, operator, operand)


_OPERATORS: Final[dict[str, Callable[[str, str, Any], Node]]] = {
    "==": _equal,
    "!=": _unequal,
    ">": _ordered,
    ">=": _ordered,
    "<": _ordered,
    "<=": _ordered,
    "in": _listed,
    "not in": _not_in,
    "any": _listed,
    "all": _listed,
    "contains": _contains,
    "text match": _text_match,
    "is empty": _is_empty,
}
_LISTED: Final = ", ".join(_OPERATORS)


def _scalar(key: str, operator: str, operand: Any) -> Any:
    value = _plain(operand)
    if isinstance(value, str):
        return _text(key, value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _number(key, value)
    raise ValueError(
        f"filter {key!r}: {operator!r} takes a string, a number, true, false or null, not {reprlib.repr(operand)}"
    )


def _plain(operand: Any) -> Any:
    """The operand converted like metadata, or unchanged if that is impossible; lists are not converted."""
    try:
        return operand if isinstance(operand, Mapping) or _is_list(operand) else to_json_value(operand)
    except ValueError:
        return operand


def _text(key: str, text: str) -> str:
    if not storable(text):
        raise ValueError(f"filter {key!r}: {text!r} has a NUL character or a lone surrogate, as no metadata has")
    return nfc(text)


def _number(key: str, number: float) -> float:
    if isinstance(number, float) and not math.isfinite(number):
        raise ValueError(f"filter {key!r}: {number!r} is not a JSON number")
    return number


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
