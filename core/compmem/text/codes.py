"""Codes of things, such as INC-250 or G4: capitals and a number. A question may be about one that does not exist."""

import re
from collections.abc import Iterable
from typing import Final

_ASKED: Final = re.compile(r"(?<![\w-])(?![QH][1-4](?!\d))([A-Z]{1,8})-?0*(\d{1,8})(?![\w-])")
"""Not a quarter or half of a year, which texts often spell out."""
_LETTERS: Final = re.compile(r"(?<!\w)([A-Za-z]{1,8})[-_ ]?\d{1,8}(?!\w)")
_NUMBER: Final = re.compile(r"(?<!\d)0*(\d{1,8})(?!\d)")


def only_unknown_codes(question: str, texts: Iterable[str]) -> bool:
    """Whether a question has codes, of whose numbers the texts have none, though they have others of the same letters.

    So "What caused INC-250?" is about nothing in texts about INC-249 and INC-251. A code of letters that no text has,
    or whose number is in a text, may be written in another way there: ISO27001, "ISO/IEC 27001".
    """
    asked = {(letters.lower(), number) for letters, number in _ASKED.findall(question)}
    if not asked:
        return False
    letters, numbers = set[str](), set[str]()
    for text in texts:
        letters.update(found.lower() for found in _LETTERS.findall(text))
        numbers.update(_NUMBER.findall(text))
    return all(named in letters and number not in numbers for named, number in asked)
