"""Escapes untrusted text for a prompt, so that nothing in it can be read as a tag or a control token.

The first character is escaped of our own tags, of anything written like a control token (`<name>`, `</name>`, `<|`,
`[NAME]`), and of both with blanks, invisible characters or brackets of other scripts in them. Comparisons, code and
ordinary HTML elements are not changed. Control tokens of another form are not recognised: an endpoint that splits text
by its own list of control tokens must not do so inside a message.
"""

import re
from typing import Final

_HIDDEN: Final = (
    r"\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    r"\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff"
)
"""Characters without width."""
_ANGLES: Final = "<＜﹤"
_QUOTATION: Final = "‹«〈《⟨❮˂≪"
"""They look like angle brackets, and are used around ordinary quotations and titles."""
_SQUARES: Final = r"\[［"
_ENDS: Final = ">＞﹥›»〉》⟩❯˃≫"
_BARS: Final = "|｜¦│"
_OURS: Final = "think|thinking|check|update|next|question|memory|block|answer"
_HTML: Final = "|".join(
    """a abbr address article aside b blockquote body br button caption code col colgroup dd del details div dl dt em
    fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 head header hr html i iframe img input ins kbd label legend
    li link main mark meta nav ol option p pre script section select small span strong style sub summary sup table tbody
    td template textarea tfoot th thead title tr u ul var video""".split()
)
"""HTML elements; no tokenizer has control tokens with such names."""

# Each repetition is possessive or bounded, so that every text takes linear time.
_BLANKS: Final = rf"[\s{_HIDDEN}]*+"
_CONTROL_NAME: Final = rf"{_BLANKS}[/／]?{_BLANKS}(?i:(?:{_OURS})\b|s{_BLANKS}[{_ENDS}])"
_BAR: Final = rf"[{_HIDDEN}]*+[{_BARS}]"
_TAG = re.compile(
    rf"[{_ANGLES}](?!/?(?i:{_HTML})>)(?="
    rf"{_CONTROL_NAME}|{_BAR}|[{_SQUARES}]|[{_HIDDEN}]|[/／][{_HIDDEN}]*+[\w{_BARS}{_SQUARES}]"
    rf"|[^\W\d][\w.:{_HIDDEN}{_BARS}-]{{0,63}}\s{{0,99}}[{_ENDS}])"
    rf"|[{_QUOTATION}](?={_CONTROL_NAME}|{_BAR})"
    rf"|[{_SQUARES}](?={_BLANKS}[/／]?{_BLANKS}[A-Z][A-Z_{_HIDDEN}]{{2,40}}\s{{0,99}}[\]］])"
    r"|&(?=(?:amp;){0,9}(?:lt|#\d{2,5});)"
)
_REFERENCE = re.compile(r"&(?:amp;(?=(?:amp;){0,9}(?:lt|#\d{2,5});)|lt;|#(\d{2,5});)")
_UNFINISHED = re.compile(r"&(?:amp;){0,9}(?:a|am|amp|l|lt|#\d{0,5})?")
_MAX_REFERENCE_CHARS: Final = 60
_REPLACED: Final = frozenset(f"{_ANGLES}{_QUOTATION}[［")


def escaped(text: str) -> str:
    """The text for a prompt; `unescaped` restores its exact characters."""
    return _TAG.sub(lambda found: {"<": "&lt;", "&": "&amp;"}.get(found[0]) or f"&#{ord(found[0])};", text)


def unescaped(text: str) -> str:
    """A model's text, with the characters that `escaped` replaced."""
    return _REFERENCE.sub(_character, text)


def _character(found: re.Match[str]) -> str:
    if found[1] is None:
        return "<" if found[0] == "&lt;" else "&"
    return chr(int(found[1])) if chr(int(found[1])) in _REPLACED else found[0]


class Unescaper:
    """`unescaped` for a text in pieces; the possible beginning of a reference waits for the next piece."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, piece: str) -> str:
        """The text that can be passed on after this piece."""
        text = self._held + piece
        at = text.rfind("&", max(0, len(text) - _MAX_REFERENCE_CHARS))
        cut = at if at >= 0 and _UNFINISHED.fullmatch(text, at) else len(text)
        self._held = text[cut:]
        return unescaped(text[:cut])

    def rest(self) -> str:
        """The text that was held back."""
        held, self._held = self._held, ""
        return unescaped(held)
