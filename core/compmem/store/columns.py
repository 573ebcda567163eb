"""The distinct metadata values of all documents under one key, and tests of them.

Each test runs once per distinct value, by lookup or binary search if possible.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from compmem.text.unicode import nfc

Hits = NDArray[np.bool_]
Places = NDArray[np.int64]

_ISO: Final = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,9})?)?(?:Z|[+-]\d\d:?\d\d(?::\d\d)?)?)?", re.ASCII
)
_MAX_ISO_DATE_CHARS: Final = 40
_FEW_DIGITS: Final = 2**53
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def folded(text: str) -> str:
    """The text with case folded."""
    return nfc(nfc(text).casefold())


def moment(text: str) -> int | None:
    """Microseconds since 1970 of an ISO date or date-time, in UTC if it has no offset; None for other texts."""
    if len(text) > _MAX_ISO_DATE_CHARS or not _ISO.fullmatch(text):
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:  # the 31st of February
        return None
    return ((found if found.tzinfo else found.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


class Column:
    """The documents' values under one key, in document order; None for documents without a value."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._values: list[Any] = []
        codes: list[int] = []
        known: dict[tuple[type, tuple[str, Any]], int] = {}
        for value in values:
            if isinstance(value, list | dict):
                codes.append(len(self._values))
                self._values.append(value)
                continue
            code = known.setdefault((type(value), _key(value)), len(self._values))
            if code == len(self._values):
                self._values.append(nfc(value) if isinstance(value, str) else value)
            codes.append(code)
        self._codes = np.array(codes, np.int64)

    def mask(self, operator: str, operand: Any) -> Hits:
        """The documents that pass a test, as a mask."""
        hits: Hits = np.zeros(len(self._values), bool)
        found = _TESTS[operator](self, operand) if operator in _TESTS else self._beyond(operator, operand)
        hits[np.asarray(found, np.int64)] = True
        return hits[self._codes]

    def _one_of(self, operand: Sequence[Any]) -> list[int]:
        return [i for key in set(map(_same, operand)) for i in self._equal.get(key, ())]

    def _beyond(self, operator: str, operand: float | str) -> Places:
        """Values on one side of the operand, among those that can be compared with it."""
        if not isinstance(operand, str):
            return self._numbers.beyond(operator, operand)
        at = moment(operand)
        if at is None:
            return self._texts.beyond(operator, operand)
        parts = (self._moments.beyond(operator, at), self._other_texts.beyond(operator, operand))
        return np.concatenate(parts)

    def _any(self, operand: Sequence[Any]) -> list[int]:
        return list({i for key in set(map(_same, operand)) for i in self._members.get(key, ())})

    def _all(self, operand: Sequence[Any]) -> list[int]:
        found = {i for i, value in enumerate(self._values) if isinstance(value, list)}
        for key in set(map(_same, operand)):
            found.intersection_update(self._members.get(key, ()))
        return list(found)

    def _contains(self, operand: Any) -> list[int]:
        part = [i for i, text in self._strings if operand in text] if isinstance(operand, str) else []
        return self._any([operand]) + part

    def _text_match(self, operand: str) -> list[int]:
        wanted = folded(operand)
        return [i for i, text in self._folded if wanted in text]

    def _empty(self, operand: bool) -> list[int]:
        return [i for i, value in enumerate(self._values) if (value is None or value in ("", [], {})) == operand]

    @cached_property
    def _strings(self) -> list[tuple[int, str]]:
        return [(i, value) for i, value in enumerate(self._values) if isinstance(value, str)]

    @cached_property
    def _folded(self) -> list[tuple[int, str]]:
        return [(i, folded(text)) for i, text in self._strings]

    @cached_property
    def _equal(self) -> dict[tuple[str, Any], list[int]]:
        return _places((i, value) for i, value in enumerate(self._values))

    @cached_property
    def _members(self) -> dict[tuple[str, Any], list[int]]:
        return _places((i, one) for i, value in enumerate(self._values) if isinstance(value, list) for one in value)

    @cached_property
    def _numbers(self) -> "_Sorted":
        numbers = [(i, v) for i, v in enumerate(self._values) if isinstance(v, int | float) and not isinstance(v, bool)]
        return _Sorted([(i, number) for i, number in numbers if number == number])  # nan cannot be sorted

    @cached_property
    def _texts(self) -> "_Sorted":
        return _Sorted(self._strings)

    @cached_property
    def _moments(self) -> "_Sorted":
        return _Sorted([(i, at) for i, text in self._strings if (at := moment(text)) is not None])

    @cached_property
    def _other_texts(self) -> "_Sorted":
        return _Sorted([(i, text) for i, text in self._strings if moment(text) is None])


_TESTS: Final[dict[str, Callable[[Column, Any], list[int]]]] = {
    "in": Column._one_of,
    "any": Column._any,
    "all": Column._all,
    "contains": Column._contains,
    "text match": Column._text_match,
    "is empty": Column._empty,
}


class _Sorted:
    """Comparable values, ascending."""

    def __init__(self, placed: Iterable[tuple[int, Any]]) -> None:
        ascending = sorted(placed, key=lambda pair: pair[1])
        self._places = np.array([i for i, _ in ascending], np.int64)
        self._values = [value for _, value in ascending]

    def beyond(self, operator: str, operand: Any) -> Places:
        """Positions of the values on one side of the operand."""
        cut = (bisect_right if operator in (">", "<=") else bisect_left)(self._values, operand)
        return self._places[cut:] if operator.startswith(">") else self._places[:cut]


def _places(placed: Iterable[tuple[int, Any]]) -> dict[tuple[str, Any], list[int]]:
    out: dict[tuple[str, Any], list[int]] = {}
    for i, value in placed:
        if not isinstance(value, list | dict):
            out.setdefault(_same(value), []).append(i)
    return out


def _same(value: Any) -> tuple[str, Any]:
    """A key that is the same for equal scalars: true is not 1, and texts for the same time are equal."""
    if isinstance(value, str):
        at = moment(value)
        return ("text", nfc(value)) if at is None else ("moment", at)
    return _key(value)


def _key(value: Any) -> tuple[str, Any]:
    """A key that is the same for equal scalars; large integers, many of which have one hash, are keyed by digits."""
    if isinstance(value, bool):
        return ("bool", value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return ("digits", hex(value)) if isinstance(value, int) and abs(value) > _FEW_DIGITS else ("other", value)
