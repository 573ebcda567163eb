"""Metadata filters: plain JSON, compiled to parametrised SQL conditions over documents and the sets they form.

`{"year": 2024}` is equality; `{"year": {">=": 2020, "<": 2024}}` is both; a list at the top is `and`;
`{"and": [...]}`, `{"or": [...]}` and `{"not": {...}}` nest. A key of the metadata that is itself called `and`, `or`
or `not` is reached by giving it operators: `{"or": {"==": 1}}`, `{"not": {"in": [1, 2]}}`.

A key that is missing counts as null, so `!=` and `not in` hold for it. Numbers compare with numbers, strings with
strings by code point; true is not 1. `document_id` and `title` stand for the document's own unless its metadata
has them. Values never become part of the SQL text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from compmem.store.manifest import Rows, storable

DEEPEST: Final = 32
"""Levels of nesting a filter may have."""
_AT_ONCE: Final = 100
"""Conditions in one query: SQLite limits how deep an expression is, and each `AND` is a level."""

_SOURCE: Final = "(SELECT type, atom, value FROM json_each(d.metadata) WHERE key = ?)"
_OWN_SOURCE: Final = (
    "(SELECT type, atom, value FROM json_each(d.metadata) WHERE key = ? UNION ALL "
    "SELECT 'text', d.{column}, d.{column} WHERE NOT EXISTS (SELECT 1 FROM json_each(d.metadata) WHERE key = ?))"
)
_OWN: Final = {"document_id": "id", "title": "title"}
_LIST: Final = "(SELECT value FROM json_each(?))"
_NUMBER: Final = "{0}.type IN ('integer', 'real')"


Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition on a row `d` of `documents`: SQL text, and the values of its parameters in order."""

    sql: str
    parameters: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """All of the parts, or any of them."""

    word: Literal["AND", "OR"]
    parts: "tuple[Node, ...]"


@dataclass(frozen=True, slots=True)
class Not:
    """The opposite of a part."""

    part: "Node"


Node = Condition | Group | Not
_ALL: Final = Condition("1")
_NONE: Final = Condition("0")


def compile_filter(wanted: Mapping[str, Any] | Sequence[Any]) -> Node:
    """A filter as conditions; equal filters give equal ones.

    Raises:
        ValueError: An operator is unknown, or a value is of a type that it does not take.
    """
    return _compile(wanted, 0)


def admitted(node: Node, rows: Rows) -> Numbers:
    """Keys of the documents that a filter admits, rising."""
    node = _opposite(node)
    if isinstance(node, Condition):
        sql = f"SELECT d.key FROM documents AS d WHERE {node.sql} ORDER BY d.key"  # noqa: S608  (values are parameters)
        return np.array([key for (key,) in rows(sql, *node.parameters)], np.int64)
    if isinstance(node, Not):
        return np.setdiff1d(admitted(_ALL, rows), admitted(node.part, rows), assume_unique=True)
    sets = [admitted(part, rows) for part in _merged(node)]
    if not sets:
        return admitted(_ALL if node.word == "AND" else _NONE, rows)
    return reduce(np.intersect1d if node.word == "AND" else np.union1d, sets)


def _merged(group: Group) -> list[Node]:
    """The parts of a group, with its plain conditions in as few queries as may be."""
    parts = [_opposite(part) for part in group.parts]
    tests = [part for part in parts if isinstance(part, Condition)]
    out: list[Node] = [part for part in parts if not isinstance(part, Condition)]
    for at in range(0, len(tests), _AT_ONCE):
        some = tests[at : at + _AT_ONCE]
        sql = f" {group.word} ".join(test.sql for test in some)
        out.append(Condition(sql, tuple(value for test in some for value in test.parameters)))
    return out


def _opposite(node: Node) -> Node:
    """The same node, as one condition where it is the opposite of one."""
    if isinstance(node, Not) and isinstance(node.part, Condition):
        return Condition(f"NOT {node.part.sql}", node.part.parameters)
    return node


def _compile(wanted: Any, depth: int) -> Node:
    if depth > DEEPEST:
        raise ValueError(f"a filter may be nested {DEEPEST} levels deep, this one is deeper")
    if _is_list(wanted):
        return Group("AND", tuple(_compile(part, depth + 1) for part in wanted))
    if not isinstance(wanted, Mapping):
        raise ValueError(f"a filter is a mapping of keys to values or operators, not {wanted!r}")
    return _all_of([part for key, value in wanted.items() for part in _entry(key, value, depth)])


def _entry(key: Any, value: Any, depth: int) -> list[Node]:
    if not isinstance(key, str):
        raise ValueError(f"filter key {key!r} must be a string")
    by_operator = isinstance(value, Mapping) and bool(value) and all(name in _OPERATORS for name in value)
    if key in ("and", "or") and not by_operator:
        if not _is_list(value) or not value:
            raise ValueError(f"filter {key!r} takes a list of filters, not {value!r}")
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
    return _OPERATORS[operator](key, operator, operand)


def _equal(key: str, operator: str, operand: Any) -> Node:
    return _in_scalars(key, [_scalar(key, operator, operand)])


def _unequal(key: str, operator: str, operand: Any) -> Node:
    return Not(_equal(key, operator, operand))


def _in(key: str, operator: str, operand: Any) -> Node:
    return _in_scalars(key, _scalars(key, operator, operand))


def _not_in(key: str, operator: str, operand: Any) -> Node:
    return Not(_in(key, operator, operand))


def _in_scalars(key: str, values: list[Any]) -> Node:
    found = _exists(key, _one_of("m", [value for value in values if value is not None]))
    return Group("OR", (found, _absent(key, "m.type = 'null'"))) if None in values else found


def _ordered(key: str, operator: str, operand: Any) -> Node:
    if isinstance(operand, bool) or not isinstance(operand, int | float | str):
        raise ValueError(f"filter {key!r}: {operator!r} takes a number or a string, not {operand!r}")
    if isinstance(operand, str):
        return _exists(key, Condition(f"m.type = 'text' AND m.atom {operator} ?", (_text(key, operand),)))
    number = _number(key, operand)
    return _exists(key, Condition(f"{_NUMBER.format('m')} AND m.atom {operator} json_extract(?, '$')", (number,)))


def _any(key: str, operator: str, operand: Any) -> Node:
    return _exists(key, _holds(_scalars(key, operator, operand)))


def _all(key: str, operator: str, operand: Any) -> Node:
    parts = [_exists(key, _holds([value])) for value in _scalars(key, operator, operand)]
    return Group("AND", (_exists(key, Condition("m.type = 'array'")), *parts))


def _contains(key: str, operator: str, operand: Any) -> Node:
    listed = _exists(key, _holds([_scalar(key, operator, operand)]))
    if not isinstance(operand, str):
        return listed
    part = Condition("m.type = 'text' AND instr(m.atom, ?) > 0", (_text(key, operand),))
    return Group("OR", (listed, _exists(key, part)))


def _text_match(key: str, operator: str, operand: Any) -> Node:
    if not isinstance(operand, str):
        raise ValueError(f"filter {key!r}: {operator!r} takes a string, not {operand!r}")
    return _exists(key, Condition("m.type = 'text' AND holds_folded(m.atom, ?)", (_text(key, operand.casefold()),)))


def _is_empty(key: str, operator: str, operand: Any) -> Node:
    if not isinstance(operand, bool):
        raise ValueError(f"filter {key!r}: {operator!r} takes true or false, not {operand!r}")
    empty = _absent(key, "m.type = 'null' OR m.type = 'text' AND m.atom = '' OR m.type = 'array' AND m.value = '[]'")
    return empty if operand else Not(empty)


_OPERATORS: Final[dict[str, Callable[[str, str, Any], Node]]] = {
    "==": _equal,
    "!=": _unequal,
    ">": _ordered,
    ">=": _ordered,
    "<": _ordered,
    "<=": _ordered,
    "in": _in,
    "not in": _not_in,
    "any": _any,
    "all": _all,
    "contains": _contains,
    "text match": _text_match,
    "is empty": _is_empty,
}
_LISTED: Final = ", ".join(_OPERATORS)


def _exists(key: str, test: Condition) -> Condition:
    source = _source(key)
    sql = f"EXISTS (SELECT 1 FROM {source.sql} AS m WHERE {test.sql})"  # noqa: S608  (values are parameters)
    return Condition(sql, (*source.parameters, *test.parameters))


def _absent(key: str, empty: str) -> Condition:
    source = _source(key)
    sql = f"NOT EXISTS (SELECT 1 FROM {source.sql} AS m WHERE NOT ({empty}))"  # noqa: S608  (our own text)
    return Condition(sql, source.parameters)


def _source(key: str) -> Condition:
    name = _text(key, key)
    if key in _OWN:
        return Condition(_OWN_SOURCE.format(column=_OWN[key]), (name, name))
    return Condition(_SOURCE, (name,))


def _holds(values: list[Any]) -> Condition:
    """The metadata is a list that holds one of the values."""
    test = _one_of("e", values)
    sql = f"m.type = 'array' AND EXISTS (SELECT 1 FROM json_each(m.value) AS e WHERE {test.sql})"  # noqa: S608  (our own)
    return Condition(sql, test.parameters)


def _one_of(row: str, values: list[Any]) -> Condition:
    """The JSON value in a row is one of the values, type and all."""
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    types = [{True: "true", False: "false", None: "null"}[v] for v in values if v is None or isinstance(v, bool)]
    # SQLite reads the numbers of both sides: its parser and Python's may differ in a float's last bit.
    parts = [
        (f"{row}.type = 'text' AND {row}.atom IN {_LIST}", texts),
        (f"{_NUMBER.format(row)} AND {row}.atom IN {_LIST}", numbers),
        (f"{row}.type IN {_LIST}", types),
    ]
    asked = [(sql, json.dumps(some, ensure_ascii=False)) for sql, some in parts if some]
    return Condition(" OR ".join(sql for sql, _ in asked) or "0", tuple(values for _, values in asked))


def _scalar(key: str, operator: str, operand: Any) -> Any:
    if isinstance(operand, str):
        return _text(key, operand)
    if operand is None or isinstance(operand, bool):
        return operand
    if isinstance(operand, int | float):
        _number(key, operand)
        return operand
    raise ValueError(f"filter {key!r}: {operator!r} takes a string, a number, true, false or null, not {operand!r}")


def _scalars(key: str, operator: str, operand: Any) -> list[Any]:
    if not _is_list(operand):
        raise ValueError(f"filter {key!r}: {operator!r} takes a list, not {operand!r}")
    return [_scalar(key, operator, value) for value in operand]


def _text(key: str, text: str) -> str:
    if not storable(text):
        raise ValueError(f"filter {key!r}: {text!r} holds a NUL character or a lone surrogate, which no metadata holds")
    return text


def _number(key: str, number: float) -> str:
    try:
        return json.dumps(number, allow_nan=False)
    except ValueError:
        raise ValueError(f"filter {key!r}: {number!r} is not a JSON number") from None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
