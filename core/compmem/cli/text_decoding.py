"""Bytes as text, and detection of binary data."""

import codecs
import contextlib
import logging
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

logger = logging.getLogger(__name__)

DETECTION_BYTES: Final = 8192
"""Bytes at the beginning of a file from which its kind is detected."""

_BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CONTROLS = re.compile(rb"[\x00-\x07\x0e-\x1a\x1c-\x1f]")
_NAMED = (
    rb"\s{0,9}=\s{0,9}[\"']?"
    rb"(windows-\d{3,4}|iso-8859-\d{1,2}|koi8-[ru]|shift_jis|euc-(?:jp|kr)|gb(?:k|2312|18030)|big5)\b"
)
"""The name of an encoding other than UTF-8, behind a word for it."""
_CHARSET = re.compile(rb"charset" + _NAMED, re.IGNORECASE)
_XML_ENCODING = re.compile(rb"<\?xml[^>]{0,99}?\sencoding" + _NAMED, re.IGNORECASE)


class UnreadableError(Exception):
    """A file cannot be read as a document; the message gives the reason, without the file name."""


class BlankError(UnreadableError):
    """A file contains no text."""


class FileContents(NamedTuple):
    """What a file has for its document."""

    title: str
    text: str
    context: str = ""
    metadata: Mapping[str, Any] = {}


def is_text(data: bytes) -> bool:
    """Whether a file with these first bytes is text."""
    return _encoding(data) is not None


def decode(data: bytes, name: str, *, html: bool = False) -> str:
    """Bytes as text: by byte order mark, as UTF-8, as XML or an HTML page names it, else as Windows-1252.

    UTF-8 with a few damaged bytes is still read as UTF-8. The last two cases are logged as warnings.

    Raises:
        UnreadableError: The bytes are not text.
    """
    encoding = _encoding(data)
    if encoding is None:
        raise UnreadableError("binary data, not text")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise UnreadableError(f"not {encoding} as its first bytes say ({error.reason})") from error
        head = data[:DETECTION_BYTES]
        text = _not_utf8(data, name, _XML_ENCODING.match(head) or (_CHARSET.search(head) if html else None))
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _encoding(data: bytes) -> str | None:
    """The encoding of the bytes, UTF-8 by default; None for binary data."""
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return encoding
    head = data[:DETECTION_BYTES]
    if not _CONTROLS.search(head):
        return "utf-8"
    for encoding, zeros, letters in (("utf-16-le", head[1::2], head[::2]), ("utf-16-be", head[::2], head[1::2])):
        if letters and zeros.count(0) > 0.7 * len(zeros) and not _CONTROLS.search(letters):
            return encoding
    return None


def _not_utf8(data: bytes, name: str, declared: re.Match[bytes] | None) -> str:
    if declared:
        encoding = declared[1].decode().lower()
        with contextlib.suppress(LookupError):  # there are not all such numbers
            return data.decode("cp1252" if encoding == "iso-8859-1" else encoding, "replace")
    text = data.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    if sum(character > "\x7f" for character in text) > 2 * damaged:
        logger.warning("%s: %d places are not UTF-8, shown as \ufffd", name, damaged)
        return text
    logger.warning("%s: not UTF-8, read as Windows-1252; if that is wrong, convert it to UTF-8", name)
    return data.decode("cp1252", "replace")
