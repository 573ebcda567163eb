"""Text that can be encoded as UTF-8, and its composed form (NFC)."""

import re
import unicodedata
from typing import Final

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MAX_MARKS: Final = 30
_MARKS = re.compile(rf"[^\w\s\x00-\x7f]{{{_MAX_MARKS + 1},}}+")
_JOINER: Final = "\u034f"


def valid(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD; a surrogate pair becomes its character."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check(what: str, text: str) -> None:
    """Refuse a text that cannot be encoded.

    Raises:
        ValueError: It has a surrogate; the message begins with `what`.
    """
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise ValueError(
            f"{what} has the lone surrogate {found[0]!r} at {found.start()}, which is not text; "
            "decode the source with errors='replace'"
        )


def nfc(text: str) -> str:
    """The text in Unicode's composed form, in which texts are compared.

    Long runs of combining marks are split first, as in UAX 15 for streams, since sorting them takes quadratic time.
    """
    return text if text.isascii() else unicodedata.normalize("NFC", _MARKS.sub(_split_marks, text))


def _split_marks(run: re.Match[str]) -> str:
    marks = run[0]
    if not any(map(unicodedata.combining, marks)):
        return marks
    return _JOINER.join(marks[at : at + _MAX_MARKS] for at in range(0, len(marks), _MAX_MARKS))
