"""Codes of things, such as INC-250 or G4: capitals and a number. A question may be about one that does not exist."""

import re
from collections.abc import Iterable
from typing import Final

_CODE: Final = re.compile(r"(?<![\w-])(?![QH][1-4](?!\d))([A-Z]{1,8})-?0*(\d{1,8})(?![\w-])")
"""Not a quarter or half of a year, which texts often spell out."""
_MAX_CODES: Final = 16
"""Maximum number of codes of a question that are looked for."""
_LETTERS: Final = re.compile(r"(?<!\w)([A-Za-z]{1,8})[-_ ]?\d{1,8}(?!\w)")
_BETWEEN: Final = r"[^\d\n]{0,12}0*"
"""What may stand between the letters and the number of a code in a text: "ISO/IEC 27001", "lot no. 17"."""


def only_unknown_codes(question: str, texts: Iterable[str]) -> bool:
    """Whether a question has codes and the texts have none of them, but others with the same letters for each.

    So "What caused INC-250?" is about nothing in texts about INC-249 and INC-251. A code of letters that no text has
    may be written in another way there.
    """
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
