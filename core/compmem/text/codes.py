"""Codes of things, such as INC-250 or M14x80. A question may be about one that does not exist."""

import re
from collections.abc import Iterable, Sequence, Set
from typing import Final

_CODE: Final = re.compile(r"(?<![\w-])(?![QH][1-4](?!\d))([A-Z]{1,8})-?0*(\d{1,8})(?![\w-])")
"""Not a quarter or half of a year, which texts often spell out."""
_MAX_CODES: Final = 16
"""Maximum number of codes of a question that are looked for."""
_LETTERS: Final = re.compile(r"(?<!\w)([A-Za-z]{1,8})[-_ ]?\d{1,8}(?!\w)")
_BETWEEN: Final = r"[^\d\n]{0,12}0*"
"""What may stand between the letters and the number of a code in a text: "ISO/IEC 27001", "lot no. 17"."""


_MIXED: Final = re.compile(
    r"(?<![\w./-])(?!V\d)[A-Z]{1,8}-?(?:\d{1,4}x\d{1,4}|\d{1,4}\.\d{1,4}|\d{2,8}[A-Z]{1,3})(?![\w/-]|\.\w)"
)
"""Capitals, a number, and another number or capitals: M14x80, D7.33 and SO-88299F; no versions and no formulas."""
_RANGE: Final = re.compile(r" ?(?:to|until|up to|through|bis|\.\.|-|–|—) ?")
"""What stands between two codes if those between them are meant too."""
_SEPARATORS: Final = re.compile(r"[\W_]+")
_DIGIT: Final = re.compile(r"\d")
_LETTER: Final = re.compile(r"[a-z]")


def only_unknown_codes(question: str, texts: Iterable[str]) -> bool:
    """Whether a question has codes and the texts have none of them, but others that look like each.

    So "What caused INC-250?" is about nothing in texts about INC-249 and INC-251, and "the price of M14x80" in texts
    with M12x60. A code that looks like none in the texts may be written in another way there, and one that looks like
    the ends of a range may be in it.
    """
    numbered, mixed = set(_CODE.findall(question)), set(_MIXED.findall(question))
    if not (numbered or mixed):
        return False
    texts = list(texts)
    return _only_unknown_numbered(numbered, texts) or _only_unknown_mixed(mixed, texts)


def _only_unknown_mixed(codes: Set[str], texts: Sequence[str]) -> bool:
    """For codes in which letters and numbers take turns; like ones have letters and digits in the same places."""
    if not 0 < len(codes) <= _MAX_CODES or _has_one_of(texts, codes):
        return False
    shapes = set[str]()
    for text in texts:
        before = None
        for found in _MIXED.finditer(text):
            if before and _RANGE.fullmatch(text, before.end(), found.start()):
                return False
            shapes.add(_shape(found[0]))
            before = found
    return {_shape(code) for code in codes} <= shapes


def _has_one_of(texts: Sequence[str], codes: Set[str]) -> bool:
    """Whether a text has one of the codes, with any signs between its parts."""
    plain = [_SEPARATORS.sub("", code).lower() for code in codes]
    written = (_SEPARATORS.sub("", text).lower() for text in texts)
    return any(code in text for text in written for code in plain)


def _shape(code: str) -> str:
    return _LETTER.sub("a", _DIGIT.sub("9", code.lower()))


def _only_unknown_numbered(codes: Set[tuple[str, str]], texts: Sequence[str]) -> bool:
    """For codes of capitals and a number; like ones have the same letters."""
    if not 0 < len(codes) <= _MAX_CODES:
        return False
    written = "|".join(rf"{letters}{_BETWEEN}{number}(?!\d)" for letters, number in sorted(codes))
    known, letters = re.compile(rf"(?<![^\W\d_])(?:{written})", re.IGNORECASE), set[str]()
    for text in texts:
        if known.search(text):
            return False
        letters.update(found.upper() for found in _LETTERS.findall(text))
    return {named for named, _ in codes} <= letters
