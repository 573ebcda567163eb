"""Codes of things, such as INC-250 or G4: capitals and a number. A question may be about one that does not exist."""

import re
from collections.abc import Iterable
from typing import Final

_ASKED: Final = re.compile(r"(?<![\w-])([A-Z]{1,8})-?(\d{1,8})(?![\w-])")
_SAID: Final = re.compile(r"(?<!\w)([A-Za-z]{1,8})[-_ ]?(\d{1,8})(?!\w)")


def only_unknown_codes(question: str, texts: Iterable[str]) -> bool:
    """Whether a question has codes and the texts have none of them, but others with the same letters for each.

    So "What caused INC-250?" is about nothing in texts about INC-249 and INC-251. A code of letters that no text has
    may be written in another way there.
    """
    asked = {(letters.lower(), number) for letters, number in _ASKED.findall(question)}
    if not asked:
        return False
    said = {(letters.lower(), number) for text in texts for letters, number in _SAID.findall(text)}
    return asked.isdisjoint(said) and {letters for letters, _ in asked} <= {letters for letters, _ in said}
