"""E-mails: subject and text, with sender, recipients and date beside it."""

import codecs
import email
import email.policy
import io
import logging
import re
from datetime import datetime
from email.message import EmailMessage
from typing import Any, Final, cast

from compmem.cli.html_text import page_text
from compmem.cli.text_decoding import FileContents, UnreadableError, decode
from compmem.text.unicode import valid

logger = logging.getLogger(__name__)

QUOTED: Final = "Quoted from an earlier message:"
"""The line before a quotation that has none of its own."""
_HEADS: Final = ("From", "To", "Cc")
_MAX_SHOWN_CHARS: Final = 200
"""Maximum number of characters of sender or recipients in the context, which is read with every chunk."""
_MAX_HEADER_CHARS: Final = 10_000
"""Maximum number of characters of a header, since reading one takes quadratic time."""
_CONTENT_HEADS: Final = ("content-type", "content-disposition")
_MAX_CONTENT_HEADER_CHARS: Final = 100_000
"""Characters that these headers of all parts of a small e-mail may have: each is parsed several times."""
_BOUNDARIES: Final = 100
"""Maximum number of part boundaries in an e-mail with many lines: each line is compared with the open ones."""
_COMPARED_LINES: Final = 10_000_000
_MARKS = re.compile(r"(?:> ?)+")
_MONTHS: Final = "January February March April May June July August September October November December".split()


class _Policy(email.policy.EmailPolicy):
    """Reads a header that cannot be parsed as plain text, without addresses, a date or parameters."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        try:
            return super().header_fetch_parse(name, value)
        except Exception:  # Python's parser raises several kinds for damaged addresses and types
            return self.header_factory("", value)


def mail_text(data: bytes, name: str) -> FileContents:
    """Subject, text, context and metadata of an e-mail, without attachments.

    The context has sender, recipients and date, one per line. The metadata has the same as values, as far as they are
    given: `from`, an address in lower case; `to` and `cc`, lists of them; `date`, in ISO form. Quoted lines have no
    marks, see `without_quote_marks`. An e-mail without text has its context as text.

    Raises:
        UnreadableError: It would take long to parse.
    """
    _check(data)
    message = cast("EmailMessage", email.message_from_bytes(data, EmailMessage, policy=_Policy()))
    lines: list[str] = []
    metadata: dict[str, Any] = {}
    for head in _HEADS:
        if shown := _one_line(value := message[head]):
            lines.append(f"{head}: {_short(shown)}")
            addresses = getattr(value, "addresses", ())
            addresses = [_one_line(address.addr_spec).lower() for address in addresses if address.domain] or [shown]
            metadata[head.lower()] = addresses[0] if head == "From" else addresses
    if (date := message["Date"]) and (shown := _one_line(date)):
        when = getattr(date, "datetime", None)
        lines.append(f"Date: {_short(shown) if when is None else _date_text(when)}")
        metadata["date"] = shown if when is None else when.isoformat()
    context = "\n".join(lines)
    return FileContents(_one_line(message["Subject"]), "\n\n".join(_texts(message, name)) or context, context, metadata)


def without_quote_marks(text: str) -> str:
    """The text of an e-mail without the marks `>` of quoted lines; lines of marks alone are blank.

    Quotations are separated by blank lines. If the line before does not end with a colon, `QUOTED` is inserted.
    """
    if "\n>" not in f"\n{text}":
        return text
    lines: list[str] = []
    before, depth = "", 0
    for line in io.StringIO(text):
        marks = _MARKS.match(line)
        now = marks[0].count(">") if marks else 0
        said = (line[marks.end() :] if marks else line).rstrip()
        if said and now != depth:
            lines.append("")
            if now > depth and not before.endswith(":"):
                lines += [QUOTED, ""]
            depth = now
        before = said or before
        lines.append(said)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _texts(part: EmailMessage, name: str) -> list[str]:
    """The texts in a part that is no attachment, without blank ones.

    Of alternatives, the first with text is read, the plain one before others; of parts that are related, the first.
    """
    if part.get_content_disposition() == "attachment":
        return []
    kind = part.get_content_type()
    if kind in ("text/plain", "text/html"):
        text = _text(part, name, is_html=kind == "text/html").strip()
        return [text] if text else []
    if part.get_content_maintype() != "multipart" or not part.is_multipart():
        return []
    parts = cast("list[EmailMessage]", part.get_payload())
    if kind == "multipart/alternative":
        parts = sorted(parts, key=lambda inner: inner.get_content_type() != "text/plain")
    texts: list[str] = []
    for inner in parts:
        texts += _texts(inner, name)
        if texts and kind in ("multipart/alternative", "multipart/related"):
            break
    return texts


def _text(part: EmailMessage, name: str, *, is_html: bool) -> str:
    """A part as text; its bytes tell their encoding where the part does not, or where it names ASCII by mistake."""
    data = cast("bytes", part.get_payload(decode=True))
    charset = part.get_content_charset("ascii")
    try:
        text = data.decode(charset, "strict" if codecs.lookup(charset).name == "ascii" else "replace")
    except (LookupError, ValueError):  # not ASCII, an unknown encoding
        try:
            text = decode(data, name, html=is_html)
        except UnreadableError as error:
            logger.warning("%s: a part is left out: %s", name, error)
            return ""
    return page_text(text)[1] if is_html else without_quote_marks(text)


def _one_line(value: Any) -> str:
    """A header on one line, without characters that cannot be stored."""
    return " ".join(valid(str(value or "")).replace("\0", " ").split())


def _short(value: str) -> str:
    """The value, cut behind one of its commas if it is long."""
    if len(value) <= _MAX_SHOWN_CHARS:
        return value
    cut = value[:_MAX_SHOWN_CHARS]
    return f"{cut.rpartition(',')[0] or cut}, ..."


def _date_text(when: datetime) -> str:
    """A date as questions may name it, in English and in ISO form."""
    return f"{when:%Y-%m-%d}, {when.day} {_MONTHS[when.month - 1]} {when.year}, {when:%H:%M}"


def _check(data: bytes) -> None:
    """Refuse an e-mail that would take long to parse."""
    boundaries, lines = data.lower().count(b"boundary"), data.count(b"\n") + data.count(b"\r")
    if boundaries > _BOUNDARIES and boundaries * lines > _COMPARED_LINES:
        raise UnreadableError(f"the e-mail has more than {_BOUNDARIES} boundaries of parts, and many lines")
    raw = email.message_from_bytes(data, policy=email.policy.compat32)
    heads = [(name.lower(), len(str(value))) for part in raw.walk() for name, value in part.items()]
    if any(length > _MAX_HEADER_CHARS for _, length in heads):
        raise UnreadableError(f"a header of the e-mail has more than {_MAX_HEADER_CHARS:,} characters")
    most = max(_MAX_CONTENT_HEADER_CHARS, len(data) // 10)
    if sum(length for name, length in heads if name in _CONTENT_HEADS) > most:
        raise UnreadableError(f"the types of the e-mail's parts have more than {most:,} characters")
