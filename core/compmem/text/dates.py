"""Day and month of a date spelled out, so that a search finds it in whatever form it is written."""

import re
from collections.abc import Sequence
from typing import Final

_MONTHS: Final = (
    "january", "february", "march", "april", "may", "june",
    "july", "august", "september", "october", "november", "december",
)  # fmt: skip
MONTHS: Final = frozenset(_MONTHS)
DAYS: Final = frozenset("monday tuesday wednesday thursday friday saturday sunday".split())
_MONTH: Final = (
    r"(jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|oct(?:ober)?"
    r"|nov(?:ember)?|dec(?:ember)?)"
)
_NUMERIC: Final = re.compile(r"\d(?<![\w.-]\d)\d{0,3}([-/.])\d\d?\1\d{1,4}(?!\.?\d|-)")
_NAMED: Final = re.compile(rf"{_MONTH}(?:\.? (\d\d?(?:st|nd|rd|th)?|\d{{4}}))?(?![^\W_])")
_BEFORE: Final = re.compile(r"(?<![^\W_])(\d\d?(?:st|nd|rd|th)?)(?: of)? \Z")
_MAX_BEFORE: Final = 9
"""Number of characters of the longest day before a month, such as "28th of "."""


def spell_dates(text: str) -> str:
    """The text with a day such as "8" and a month such as "april" behind each date that has them in another form.

    So "2024-04-08", "08.04.2024", "apr 8, 2024" and "8th of april 2024" have the words of "8 april 2024". A date that
    may begin with its day or its month, such as "04/08/2024", gets both.

    Args:
        text: In lower case.
    """
    return _NAMED.sub(_spell_named, _NUMERIC.sub(_spell_numeric, text))


def _spell_numeric(date: re.Match[str]) -> str:
    first, second, third = date[0].split(date[1])
    if len(first) == 4 and len(third) <= 2:
        return _followed(date[0], _day_and_month(third, second))
    if len(first) > 2 or len(third) != 4:
        return date[0]
    either = [] if date[1] == "." or first == second else _day_and_month(second, first)
    return _followed(date[0], [*_day_and_month(first, second), *either])


def _day_and_month(day: str, month: str) -> list[str]:
    return [str(int(day)), _MONTHS[int(month) - 1]] if 1 <= int(day) <= 31 and 1 <= int(month) <= 12 else []


def _spell_named(date: re.Match[str]) -> str:
    text, start, month = date.string, date.start(), date[1]
    before = _BEFORE.search(text, max(0, start - _MAX_BEFORE), start)
    day = before[1] if before else date[2]
    if day is None or (start and text[start - 1].isalnum()):
        return date[0]
    full = next(name for name in _MONTHS if name.startswith(month[:3]))
    spelled = (day.rstrip("stndrh").lstrip("0"), full)
    return _followed(date[0], [word for word in spelled if word not in ("", day, month)])


def _followed(text: str, words: Sequence[str]) -> str:
    return " ".join((text, *words, "")) if words else text
