"""Parses replies of a chat model: the structured reply of a step, and the answer without thoughts."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from compmem.errors import ReaderError
from compmem.schema import Request
from compmem.text.escaping import Unescaper, unescaped

MAX_REQUEST_CHARS: Final = 300
"""Maximum number of characters of a search request; the rest is cut off."""

# Blanks are bounded, so that every text takes linear time.
_TAG = re.compile(r"<\s{0,9}(/?)\s{0,9}(think|check|update|next)(?:(?<=k)ing)?\s{0,9}>", re.IGNORECASE)
_MAX_TAG_CHARS = 48
"""An upper bound for the length of a tag."""
_FENCED = re.compile(r"\s*```[^\n]*\n(.*)", re.DOTALL)
_FENCE_END = re.compile(r"\n[ \t]{0,9}```\s*\Z")
_YES_NO = re.compile(r"\W{0,99}(yes|no)\b", re.IGNORECASE)
_CONTINUE_END = re.compile(r"\W{0,99}(continue|end)\b", re.IGNORECASE)
_WRAPPED = re.compile(r"\A\s{0,99}<memory>|</memory>\s{0,99}\Z")  # notes with their tags
_SEARCH = re.compile(r"[\s*`#>-]{0,9}search[\s*`]{0,3}:", re.IGNORECASE)
_MAY_SEARCH = re.compile(r"[\s*`#>-]{0,9}(?:s(?:e(?:a(?:r(?:ch?)?)?)?)?)?[\s*`]{0,3}\Z", re.IGNORECASE)
_REQUEST = re.compile(rf"{_SEARCH.pattern}|[\s*`#>-]{{0,9}}search\s{{1,9}}for\s", re.IGNORECASE)
_MAY_REQUEST = re.compile(rf"{_MAY_SEARCH.pattern}|[\s*`#>-]{{0,9}}search\s{{1,9}}(?:f|fo|for)?\Z", re.IGNORECASE)
_MAY_THINK = re.compile(r"<\s{0,9}(?:$|t$|th$|thi$|thin$|think)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """A structured reply: the candidate memory and the two gates."""

    check: bool
    """The update gate: the blocks help."""
    update: str
    """The candidate memory; empty only if `check` is false."""
    end: bool
    """The exit gate: the notes suffice."""


def parse_reply(text: str) -> Reply | None:
    """The structured reply in a model's text, or None if it is unclear.

    Case, blanks, a code fence around the whole, missing thoughts, a missing `<next>` and an unclosed last tag are
    accepted. Text inside thoughts is ignored, and so are tags inside the candidate memory. None if there is no check,
    or the check is yes and no memory follows.
    """
    if fenced := _FENCED.match(text):
        text = _FENCE_END.sub("", fenced[1])
    return _parse_parts(text[_after_thoughts(text) :]) or _parse_parts(_without_thoughts(text))


def parse_step_reply(text: str, *, structured: bool) -> Reply | None:
    """The parsed reply of a step, or None if it is unclear; an unstructured reply is the new memory itself."""
    if structured:
        return parse_reply(text)
    notes = without_thinking(text)
    return Reply(check=True, update=notes, end=False) if notes else None


def without_thinking(text: str) -> str:
    """A whole reply without the thoughts at its beginning; empty if it ends inside them."""
    rest = text[_after_thoughts(text) :].strip()
    return "" if (tag := _TAG.match(rest)) and _name(tag) == "think" else rest


def ends_untagged_thinking(text: str) -> bool:
    """Whether the reply closes a thought that it never opened: some servers remove the opening tag."""
    names = [_name(tag) for tag in _TAG.finditer(text)]
    return names.count("/think") > names.count("think")


class ThinkingFilter:
    """A streamed answer without the thinking section at its beginning.

    Args:
        hold: The model is known to close thoughts that it never opened; nothing is passed on until one is closed.
    """

    def __init__(self, *, hold: bool) -> None:
        self._pieces: list[str] = []
        self._start = ""
        self._end = ""
        self._hold = hold
        self._answering = False
        self._started = False

    def feed(self, piece: str) -> str:
        """The text that can be passed on after this piece."""
        self._pieces.append(piece)
        if self._answering:
            return self._passed(piece)
        # Only the first and the last characters are checked, so that a long thought is not scanned again and again.
        if len(self._start) < _MAX_TAG_CHARS:
            self._start = (self._start + piece).lstrip()[:_MAX_TAG_CHARS]
        recent = self._end + piece
        self._end = recent[-_MAX_TAG_CHARS:]
        if after := _after_thoughts(recent):
            start = recent[after:]
        elif self._hold or not self._start or _MAY_THINK.match(self._start):
            return ""
        else:
            start = self.full_text.lstrip()
        self._answering = True
        return self._passed(start)

    @property
    def full_text(self) -> str:
        """All text so far, thoughts included."""
        return "".join(self._pieces)

    def rest(self) -> str:
        """The text that was held back and is not a thought.

        Raises:
            ReaderError: The reply is empty.
        """
        held = "" if self._answering else self._passed(without_thinking(self.full_text))
        if not self._started:
            raise ReaderError("the chat model gave an empty answer")
        return held

    def _passed(self, text: str) -> str:
        text = text if self._started else text.lstrip()
        self._started = self._started or bool(text)
        return text


class AnswerFilter:
    """The part of a streamed answer to show, unescaped, and what the model asks for instead of answering.

    A reply whose first line is `SEARCH: ...` is a request. That line is never passed on. If the model may not ask, it
    is reported as missing information, unless an answer follows it. If it may, `Search for ...` is a request too, as
    small models write it.

    Args:
        hold: As in `ThinkingFilter`.
        from_blocks: The answer is written from blocks, so the first line may be a request.
        may_ask: The model may ask for missing facts.
    """

    def __init__(self, *, hold: bool, from_blocks: bool, may_ask: bool) -> None:
        self._thinking = ThinkingFilter(hold=hold)
        self._may_ask = may_ask
        self._request, self._may_request = (_REQUEST, _MAY_REQUEST) if may_ask else (_SEARCH, _MAY_SEARCH)
        self._first: str | None = "" if from_blocks else None
        self._missing = ""
        self._wrote = False
        self._plain = Unescaper()

    @property
    def full_text(self) -> str:
        """All text of the model."""
        return self._thinking.full_text

    @property
    def request(self) -> str:
        """What the model asks for; empty if it answers, or as long as that is unclear."""
        return self._missing if self._may_ask else ""

    def feed(self, piece: str) -> str:
        """The text that can be passed on after this piece."""
        text = self._thinking.feed(piece)
        return "" if self.request else self._plain.feed(self._passed(text, last=False))

    def rest(self) -> str:
        """The text that was held back and is passed on at the end.

        Raises:
            ReaderError: The reply is empty.
        """
        return self._plain.feed(self._rest()) + self._plain.rest()

    def _rest(self) -> str:
        if self.request:
            return ""
        held = self._passed(self._thinking.rest(), last=True)
        if self.request or held or self._wrote:
            return held
        if not self._missing:
            raise ReaderError("the chat model gave an empty answer")
        return f"The documents found do not say: {self._missing}"

    def requests(self) -> Iterator[Request]:
        """The request, if there is one."""
        if self.request:
            yield Request(text=unescaped(self.request))

    def _passed(self, text: str, *, last: bool) -> str:
        if self._first is not None:
            self._first += text
            text = self._after_first_line(self._first, last=last)
        text = text if self._wrote else text.lstrip()
        self._wrote = self._wrote or bool(text)
        return text

    def _after_first_line(self, text: str, *, last: bool) -> str:
        """The text after the request line, or all of it if there is none; empty as long as that is unclear."""
        match = self._request.match(text)
        if match is None:
            if self._may_request.match(text) and not last:
                return ""
            self._first = None
            return text
        line, ended, rest = text[match.end() :].partition("\n")
        if not (ended or last or len(line) > 2 * MAX_REQUEST_CHARS):
            return ""
        self._first = None
        self._missing = " ".join(line.split())[:MAX_REQUEST_CHARS].strip("*`()<> ")
        return "" if self.request else rest


def _name(tag: re.Match[str]) -> str:
    return (tag[1] + tag[2]).lower()


def _after_thoughts(text: str) -> int:
    """Offset after the last closed thought; 0 if there is none."""
    return max((tag.end() for tag in _TAG.finditer(text) if _name(tag) == "/think"), default=0)


def _without_thoughts(text: str) -> str:
    parts: list[str] = []
    start: int | None = 0
    for tag in _TAG.finditer(text):
        if start is not None and _name(tag) == "think":
            parts.append(text[start : tag.start()])
            start = None
        elif start is None and _name(tag) == "/think":
            start = tag.end()
    return "".join(parts) + (text[start:] if start is not None else "")


def _parse_parts(text: str) -> Reply | None:
    tags = list(_TAG.finditer(text))
    unended = next((tag.start() for tag in tags if _name(tag) == "think"), len(text))
    tags = [tag for tag in tags if tag.start() < unended]
    start, end = _update_span(tags, unended)
    outside = [tag for tag in tags if not start <= tag.start() < end]
    check = _last_value(outside, "check", _YES_NO)
    update = _WRAPPED.sub("", text[start:end]).strip()
    if check is None or (check == "yes" and not update):
        return None
    return Reply(check=check == "yes", update=update, end=_last_value(outside, "next", _CONTINUE_END) == "end")


def _update_span(tags: list[re.Match[str]], end: int) -> tuple[int, int]:
    """The span of the candidate memory: to its last closing tag, else to the next part or the end of the text."""
    opened = next((tag.end() for tag in tags if _name(tag) == "update"), None)
    if opened is None:
        return 0, 0
    later = [tag for tag in tags if tag.start() >= opened]
    closed = [tag.start() for tag in later if _name(tag) == "/update"]
    if closed:
        return opened, closed[-1]
    return opened, next((tag.start() for tag in later if _name(tag) in ("check", "next")), end)


def _last_value(tags: list[re.Match[str]], name: str, value: re.Pattern[str]) -> str | None:
    """The last allowed value that follows an opening tag of that name."""
    found = [value.match(tag.string, tag.end()) for tag in tags if _name(tag) == name]
    return next((match[1].lower() for match in reversed(found) if match), None)
