"""Codes of things, such as INC-250, M14x80 or 2.7.0. A question may be about one that does not exist."""

import re
from collections.abc import Iterable, Sequence
from typing import Final

_CODE: Final = re.compile(r"(?<![\w-])(?![QH][1-4](?!\d))([A-Z]{1,8})-?0*(\d{1,8})(?![\w-])")
"""Not a quarter or half of a year, which texts often spell out."""
_MAX_CODES: Final = 16
"""Maximum number of codes of a question that are looked for."""
_LETTERS: Final = re.compile(r"(?<!\w)([A-Za-z]{1,8})[-_ ]?\d{1,8}(?!\w)")
_BETWEEN: Final = r"[^\d\n]{0,12}0*"
"""What may stand between the letters and the number of a code in a text: "ISO/IEC 27001", "lot no. 17"."""


_TOKEN: Final = re.compile(r"(?<![\w./-])[A-Za-z0-9]++(?:[._/-][A-Za-z0-9]++)*+(?![\w-])")
_VERSION: Final = re.compile(r"(?!\d{1,2}\.\d{1,2}\.(?:\d\d){1,2}$)\d{1,3}(?:\.\d{1,5}){2,3}")
"""Three or four numbers, which are no date."""
_MIXED: Final = re.compile(
    r"[A-Za-z]{1,8}[._/-]?\d{1,8}+(?:[A-Za-z]|[._/-][A-Za-z0-9])[\w./-]{0,40}|\d{1,8}+[._/-]?[A-Za-z][\w./-]{0,40}"
)
"""Letters and numbers in turn, at least three of them or first a number."""
_WORD_IN_CODE: Final = re.compile(r"[a-z]{2}|\ds$")
"""In 5G-based, 10mg and F-16s."""
_MIN_CHARS: Final = 4
_SEPARATORS: Final = re.compile(r"[\W_]+")
_DIGIT: Final = re.compile(r"\d")
_LETTER: Final = re.compile(r"[a-z]")


def only_unknown_codes(question: str, texts: Iterable[str]) -> bool:
    """Whether a question has codes and the texts have none of them, but others that look like each.

    So "What caused INC-250?" is about nothing in texts about INC-249 and INC-251, and "the price of M14x80" in texts
    with M12x60. A code that looks like none in the texts may be written in another way there.
    """
    texts = list(texts)
    return _only_unknown_numbers(question, texts) or _only_unknown_shapes(question, texts)


def _only_unknown_shapes(question: str, texts: Sequence[str]) -> bool:
    """For versions, and codes in which letters and numbers take turns; like ones have letters and digits in place."""
    codes = {token for token in _TOKEN.findall(question) if _is_shaped(token)}
    if not 0 < len(codes) <= _MAX_CODES:
        return False
    plain = [_SEPARATORS.sub("", code).lower() for code in codes]
    shapes = set[str]()
    for text in texts:
        written = _SEPARATORS.sub("", text).lower()
        if any(code in written for code in plain):
            return False
        shapes.update(_shape(token) for token in _TOKEN.findall(text) if _is_shaped(token))
    return {_shape(code) for code in codes} <= shapes


def _is_shaped(token: str) -> bool:
    if len(token) < _MIN_CHARS or token.islower() or _WORD_IN_CODE.search(token):
        return False
    return any(pattern.fullmatch(token) for pattern in (_VERSION, _MIXED))


def _shape(code: str) -> str:
    return _LETTER.sub("a", _DIGIT.sub("9", code.lower()))


def _only_unknown_numbers(question: str, texts: Sequence[str]) -> bool:
    """For codes of capitals and a number; like ones have the same letters."""
    codes = set(_CODE.findall(question))
    if not 0 < len(codes) <= _MAX_CODES:
        return False
    written = "|".join(rf"{letters}{_BETWEEN}{number}(?!\d)" for letters, number in sorted(codes))
    known, letters = re.compile(rf"(?<![^\W\d_])(?:{written})", re.IGNORECASE), set[str]()
    for text in texts:
        if known.search(text):
            return False
        letters.update(found.upper() for found in _LETTERS.findall(text))
    return {named for named, _ in codes} <= letters
