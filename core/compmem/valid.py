"""Text that can be encoded as UTF-8."""

import re

_SURROGATE = re.compile(r"[\ud800-\udfff]")


def valid(text: str) -> str:
    """The text with each lone surrogate replaced by U+FFFD; a pair of surrogates becomes its character."""
    if text.isascii() or _SURROGATE.search(text) is None:
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
