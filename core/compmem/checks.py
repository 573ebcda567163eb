"""Checks of settings: each raises a `ValueError` that names the setting and its value."""

from numbers import Real
from typing import Any


def check_one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Refuse a value that is not among the allowed ones."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def check_whole(name: str, value: object, least: int = 1) -> None:
    """Refuse a value that is no whole number of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")


def check_share(name: str, value: Any) -> None:
    """Refuse a value that is no number from 0 to 1."""
    if not _is_number(value) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} must be a number between 0 and 1")


def check_positive(name: str, value: Any) -> None:
    """Refuse a value that is no number above 0."""
    if not _is_number(value) or not value > 0:
        raise ValueError(f"{name}={value!r} must be a number above 0")


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
