"""Metadata filters: plain JSON, compiled to one parametrised SQL condition over documents.

`{"year": 2024}` is equality; `{"year": {">=": 2020, "<": 2024}}` is both; a list at the top is `and`;
`{"and": [...]}`, `{"or": [...]}` and `{"not": {...}}` nest. A key of the metadata that is itself called `and`, `or`
or `not` is reached by giving it operators: `{"or": {"==": 1}}`, `{"not": {"in": [1, 2]}}`.

A key that is missing counts as null, so `!=` and `not in` hold for it. Numbers compare with numbers, strings with
strings by code point; true is not 1. `document_id` and `title` stand for the document's own unless its metadata
has them. Values never become part of the SQL text.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

DEEPEST: Final = 12
"""Levels of nesting a filter may have."""

_SOURCE: Final = "(SELECT type, atom, value FROM json_each(d.metadata) WHERE key = ?)"
_OWN_SOURCE: Final = (
    "(SELECT type, atom, value FROM json_each(d.metadata) WHERE key = ? "
    "UNION ALL SELECT 'text', d.{column}, d.{column} "
    "WHERE NOT EXISTS (SELECT 1 FROM json_each(d.metadata) WHERE key = ?))"
)
_OWN: Final = {"document_id": "id", "title": "title"}
_LIST: Final = "(SELECT value FROM json_each(?))"
_NUMBER: Final = "{0}.type IN ('integer', 'real')"

Condition = tuple[str, list[Any]]
"""SQL text, and the values of its parameters in order."""


def compile_filter(wanted: Mapping[str, Any] | Sequence[Any]) -> Condition:
    """A condition on a row `d` of `documents`.

    Raises:
        ValueError: An operator is unknown, or a value is of a type that it does not take.
    """
    return _compile(wanted, 0)


def _compile(wanted: Any, depth: int) -> Condition:
    if depth > DEEPEST:
        raise ValueError(f"a filter may be nested {DEEPEST} levels deep, this one is deeper")
    if _is_list(wanted):
        return _joined("AND", [_compile(part, depth + 1) for part in wanted])
    if not isinstance(wanted, Mapping):
        raise ValueError(f"a filter is a mapping of keys to values or operators, not {wanted!r}")
    return _joined("AND", [_entry(key, value, depth) for key, value in wanted.items()])


def _entry(key: Any, value: Any, depth: int) -> Condition:
    if not isinstance(key, str):
        raise ValueError(f"filter key {key!r} must be a string")
    by_operator = isinstance(value, Mapping) and bool(value) and all(name in _OPERATORS for name in value)
    if key in ("and", "or") and not by_operator:
        if not _is_list(value) or not value:
            raise ValueError(f"filter {key!r} takes a list of filters, not {value!r}")
        return _joined(key.upper(), [_compile(part, depth + 1) for part in value])
    if key == "not" and not by_operator:
        sql, parameters = _compile(value, depth + 1)
        return f"NOT {sql}", parameters
    if not isinstance(value, Mapping):
        return _negatable(key, "==", value)
    if not value:
        raise ValueError(f"filter {key!r} has no operator; there are {_LISTED}")
    return _joined("AND", [_negatable(key, operator, operand) for operator, operand in value.items()])


def _negatable(key: str, operator: str, operand: Any) -> Condition:
    if operator not in _OPERATORS:
        raise ValueError(f"unknown filter operator {operator!r} for {key!r}; there are {_LISTED}")
    if operator in _NEGATIVE:
        sql, parameters = _OPERATORS[_NEGATIVE[operator]](key, operator, operand)
        return f"NOT {sql}", parameters
    return _OPERATORS[operator](key, operator, operand)


def _equal(key: str, operator: str, operand: Any) -> Condition:
    return _in_scalars(key, [_scalar(key, operator, operand)])


def _in(key: str, operator: str, operand: Any) -> Condition:
    return _in_scalars(key, _scalars(key, operator, operand))


def _in_scalars(key: str, values: list[Any]) -> Condition:
    test = _one_of("m", [value for value in values if value is not None])
    found = _exists(key, test)
    if None not in values:
        return found
    return _joined("OR", [found, _absent(key, "m.type = 'null'")])


def _ordered(key: str, operator: str, operand: Any) -> Condition:
    if isinstance(operand, bool) or not isinstance(operand, int | float | str):
        raise ValueError(f"filter {key!r}: {operator!r} takes a number or a string, not {operand!r}")
    if isinstance(operand, str):
        return _exists(key, (f"m.type = 'text' AND m.atom {operator} ?", [_text(key, operand)]))
    return _exists(key, (f"{_NUMBER.format('m')} AND m.atom {operator} json_extract(?, '$')", [_number(key, operand)]))


def _any(key: str, operator: str, operand: Any) -> Condition:
    return _exists(key, _holds(_scalars(key, operator, operand)))


def _all(key: str, operator: str, operand: Any) -> Condition:
    parts = [_holds([value]) for value in _scalars(key, operator, operand)]
    return _exists(key, _joined("AND", [("m.type = 'array'", []), *parts]))


def _contains(key: str, operator: str, operand: Any) -> Condition:
    listed = _holds([_scalar(key, operator, operand)])
    if not isinstance(operand, str):
        return _exists(key, listed)
    return _exists(key, _joined("OR", [listed, ("m.type = 'text' AND instr(m.atom, ?) > 0", [_text(key, operand)])]))


def _text_match(key: str, operator: str, operand: Any) -> Condition:
    if not isinstance(operand, str):
        raise ValueError(f"filter {key!r}: {operator!r} takes a string, not {operand!r}")
    return _exists(key, ("m.type = 'text' AND holds_folded(m.atom, ?)", [_text(key, operand.casefold())]))


def _is_empty(key: str, operator: str, operand: Any) -> Condition:
    if not isinstance(operand, bool):
        raise ValueError(f"filter {key!r}: {operator!r} takes true or false, not {operand!r}")
    sql, parameters = _absent(
        key,
        "m.type = 'null' OR (m.type = 'text' AND m.atom = '') OR (m.type = 'array' AND json_array_length(m.value) = 0)",
    )
    return (sql, parameters) if operand else (f"NOT {sql}", parameters)


_OPERATORS: Final[dict[str, Callable[[str, str, Any], Condition]]] = {
    "==": _equal,
    "!=": _equal,
    ">": _ordered,
    ">=": _ordered,
    "<": _ordered,
    "<=": _ordered,
    "in": _in,
    "not in": _in,
    "any": _any,
    "all": _all,
    "contains": _contains,
    "text match": _text_match,
    "is empty": _is_empty,
}
_NEGATIVE: Final = {"!=": "==", "not in": "in"}
_LISTED: Final = ", ".join(_OPERATORS)


def _exists(key: str, test: Condition) -> Condition:
    source, parameters = _source(key)
    return f"EXISTS (SELECT 1 FROM {source} AS m WHERE {test[0]})", [*parameters, *test[1]]  # noqa: S608


def _absent(key: str, empty: str) -> Condition:
    source, parameters = _source(key)
    return f"NOT EXISTS (SELECT 1 FROM {source} AS m WHERE NOT ({empty}))", parameters  # noqa: S608


def _source(key: str) -> Condition:
    name = _text(key, key)
    if key in _OWN:
        return _OWN_SOURCE.format(column=_OWN[key]), [name, name]
    return _SOURCE, [name]


def _holds(values: list[Any]) -> Condition:
    """The metadata is a list that holds one of the values."""
    sql, parameters = _one_of("e", values)
    return f"(m.type = 'array' AND EXISTS (SELECT 1 FROM json_each(m.value) AS e WHERE {sql}))", parameters  # noqa: S608


def _one_of(row: str, values: list[Any]) -> Condition:
    """The JSON value in a row is one of the values, type and all."""
    texts = [value for value in values if isinstance(value, str)]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    types = [{True: "true", False: "false", None: "null"}[v] for v in values if v is None or isinstance(v, bool)]
    # The same parser must read both sides: SQLite's and Python's may differ in a float's last bit.
    parts = [
        (f"{row}.type = 'text' AND {row}.atom IN {_LIST}", texts),
        (f"{_NUMBER.format(row)} AND {row}.atom IN {_LIST}", numbers),
        (f"{row}.type IN {_LIST}", types),
    ]
    return _joined("OR", [(sql, [json.dumps(some, ensure_ascii=False)]) for sql, some in parts if some])


def _joined(word: str, parts: Sequence[Condition]) -> Condition:
    """The conditions under one AND or OR, as a balanced tree: SQLite limits how deep an expression is."""
    if not parts:
        return ("(1 = 1)" if word == "AND" else "(1 = 0)"), []
    if len(parts) == 1:
        return f"({parts[0][0]})", parts[0][1]
    half = len(parts) // 2
    left, right = _joined(word, parts[:half]), _joined(word, parts[half:])
    return f"({left[0]} {word} {right[0]})", [*left[1], *right[1]]


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
    if "\0" in text or any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"filter {key!r}: {text!r} holds a NUL character or a lone surrogate, which no metadata holds")
    return text


def _number(key: str, number: float) -> str:
    try:
        return json.dumps(number, allow_nan=False)
    except ValueError:
        raise ValueError(f"filter {key!r}: {number!r} is not a JSON number") from None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
