"""Text that can be encoded as UTF-8."""

import re

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def valid(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD; a pair of surrogates becomes its character."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def check(what: str, text: str) -> None:
    """Refuse a text that cannot be encoded.

    Raises:
        ValueError: It holds a surrogate; the message begins with `what`.
    """
    if not text.isascii() and (found := _SURROGATE.search(text)):
        raise ValueError(
            f"{what} holds the lone surrogate {found[0]!r} at {found.start()}, which is not text; "
            "decode the source with errors='replace'"
        )
