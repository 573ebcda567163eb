"""Checks of settings and arguments; the error names the setting and its value."""

import math
from collections.abc import Iterable
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def check_choices(settings: Any) -> None:
    """Refuse settings with a field whose type is a `Literal` or `bool`, or None as well, and whose value is another."""
    for name, allowed in _choices(type(settings)).items():  # type: ignore[arg-type]  # mypy: classes hash
        check_one_of(name, getattr(settings, name), allowed)


def check_one_of(name: str, value: object, allowed: tuple[str | bool | None, ...]) -> None:
    """Refuse a value that is not among the allowed ones."""
    if value not in allowed or _is_number(value):  # 1 == True
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def check_integer(name: str, value: Any, minimum: int = 1) -> None:
    """Refuse a value that is no whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {minimum}")


def check_fraction(name: str, value: Any) -> None:
    """Refuse a value that is no number from 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be a number between 0 and 1")


def check_positive(name: str, value: Any) -> None:
    """Refuse a value that is no finite number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise ValueError(f"{name}={value!r} must be a finite number above 0")


@cache
def _choices(settings: type) -> dict[str, tuple[str | bool | None, ...]]:
    """The values that each field of this dataclass may have whose type is a `Literal` or `bool`, or None as well."""
    found = dict[str, tuple[str | bool | None, ...]]()
    for name, hint in get_type_hints(settings).items():
        if hint is bool:
            found[name] = (True, False)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if any(get_origin(kind) is Literal for kind in kinds):
            found[name] = tuple(v for kind in kinds for v in ((None,) if kind is NoneType else get_args(kind)))
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_ids(ids: Iterable[str]) -> list[str]:
    """The ids of the documents to delete.

    Raises:
        ValueError: It is one id, not a list.
        TypeError: It is no list of strings.
    """
    if isinstance(ids, str):
        raise ValueError("delete takes a list of ids, not one id")
    if not isinstance(ids, Iterable):
        raise TypeError(f"delete takes a list of ids, not {type(ids).__name__}")
    given = list(ids)
    for each in given:
        if not isinstance(each, str):
            raise TypeError(f"delete takes ids that are strings, not {type(each).__name__}")
    return given
