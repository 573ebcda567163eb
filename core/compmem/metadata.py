"""Metadata as JSON: values from loaders and frameworks are converted to the nearest JSON value."""

from collections.abc import Mapping
from datetime import date, time
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import Any
from uuid import UUID

import numpy as np


def to_json_value(value: Any) -> Any:
    """The nearest JSON value; lists and mappings are converted recursively.

    Dates and times become ISO text, `Decimal` and NumPy numbers become numbers, `UUID` and paths become text, and a
    member of an `Enum` becomes its value. `nan` and `inf` are left unchanged, so JSON refuses them.

    Raises:
        ValueError: JSON has no similar value, or a key is not a string.
    """
    if isinstance(value, Enum):
        return to_json_value(value.value)
    if isinstance(value, np.generic):
        return _of_numpy(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [to_json_value(item) for item in value]
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"the key {wrong[0]!r} is not a string")
        return {key: to_json_value(item) for key, item in value.items()}
    if isinstance(value, date | time):
        return _checked(value.isoformat())
    if isinstance(value, Decimal):
        return _number(value)
    if isinstance(value, UUID | PurePath):
        return str(value)
    raise ValueError(f"a value of type {type(value).__name__}")


def _of_numpy(value: "np.generic[Any]") -> Any:
    kind = value.dtype.kind
    if kind in "iu":
        return int(value)
    if kind == "f":
        return float(value)
    if kind in "bU":
        return value.item()
    if kind == "M":
        return _checked(str(value))
    raise ValueError(f"a value of type {type(value).__name__}")


def _number(value: Decimal) -> int | float:
    """An integer exactly, any other number as the nearest float."""
    near = float(value)
    return int(value) if near.is_integer() and value == int(value) else near


def _checked(text: str) -> str:
    if text == "NaT":
        raise ValueError("NaT is not a date")
    return text
