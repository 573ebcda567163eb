"""What a chat model wrote, read: the structured reply of a step, and the spoken part of an answer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from compmem.errors import ReaderError
from compmem.readers.escaping import unescaped
from compmem.schema import Request

LONGEST_REQUEST: Final = 300
"""Characters of what a model asks for, beyond which the rest is left out."""

# Blanks are bounded so that no text takes more than linear time.
_TAG = re.compile(r"<\s{0,9}(/?)\s{0,9}(think|check|update|next)(?:(?<=k)ing)?\s{0,9}>", re.IGNORECASE)
_LONGEST_TAG = 48
"""Characters, and some more, of the longest tag."""
_FENCED = re.compile(r"\s*```[^\n]*\n(.*)", re.DOTALL)
_FENCE_END = re.compile(r"\n[ \t]{0,9}```\s*\Z")
_YES_NO = re.compile(r"\W{0,99}(yes|no)\b", re.IGNORECASE)
_CONTINUE_END = re.compile(r"\W{0,99}(continue|end)\b", re.IGNORECASE)
_WRAPPED = re.compile(r"\A\s{0,99}<memory>|</memory>\s{0,99}\Z")  # notes as they were shown
_SEARCH = re.compile(r"[\s*`#>-]{0,9}search[\s*`]{0,3}:", re.IGNORECASE)
_MAY_SEARCH = re.compile(r"[\s*`#>-]{0,9}(?:s(?:e(?:a(?:r(?:ch?)?)?)?)?)?[\s*`]{0,3}\Z", re.IGNORECASE)
_MAY_THINK = re.compile(r"<\s{0,9}(?:$|t$|th$|thi$|thin$|think)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """A structured reply: the two gates and the candidate memory between them."""

    check: bool
    """The update gate: the blocks help."""
    update: str
    """The candidate memory; empty only where `check` is false."""
    end: bool
    """The exit gate: enough is known."""


def parse_reply(text: str) -> Reply | None:
    """The structured reply in what the model wrote, or None where it cannot be told.

    Case, blanks, fences around the whole, missing thoughts, a missing `<next>` and a last tag left open are forgiven.
    Nothing inside thoughts counts, nor do tags inside the candidate memory. None where no check is given, or the check
    is yes and no memory follows.
    """
    if fenced := _FENCED.match(text):
        text = _FENCE_END.sub("", fenced[1])
    return _parse_parts(text[_after_thoughts(text) :]) or _parse_parts(_without_thoughts(text))


def parse_step_reply(text: str, *, structured: bool) -> Reply | None:
    """What a step's reply says, or None where it cannot be told; an unstructured one is the new memory itself."""
    if structured:
        return parse_reply(text)
    notes = without_thinking(text)
    return Reply(check=True, update=notes, end=False) if notes else None


def without_thinking(text: str) -> str:
    """A whole reply without the thoughts before it; empty where it ends within them."""
    rest = text[_after_thoughts(text) :].strip()
    return "" if (tag := _TAG.match(rest)) and _name(tag) == "think" else rest


def ends_untagged_thinking(text: str) -> bool:
    """Whether a thought ends in the reply that never began: some servers swallow the opening tag."""
    names = [_name(tag) for tag in _TAG.finditer(text)]
    return names.count("/think") > names.count("think")


class ThinkingFilter:
    """A streamed answer without the thinking section before it.

    Args:
        hold: The model is known to end thoughts that never began; nothing is passed on until one has ended.
    """

    def __init__(self, *, hold: bool) -> None:
        self._pieces: list[str] = []
        self._start = ""
        self._end = ""
        self._hold = hold
        self._speaking = False
        self._spoke = False

    def feed(self, piece: str) -> str:
        """What can be passed on after this piece."""
        self._pieces.append(piece)
        if self._speaking:
            return self._passed(piece)
        # Only the first and the last characters are looked at, so that a long thought is not read again and again.
        if len(self._start) < _LONGEST_TAG:
            self._start = (self._start + piece).lstrip()[:_LONGEST_TAG]
        recent = self._end + piece
        self._end = recent[-_LONGEST_TAG:]
        if after := _after_thoughts(recent):
            start = recent[after:]
        elif self._hold or not self._start or _MAY_THINK.match(self._start):
            return ""
        else:
            start = self.heard.lstrip()
        self._speaking = True
        return self._passed(start)

    @property
    def heard(self) -> str:
        """All that was said so far, thoughts too."""
        return "".join(self._pieces)

    def rest(self) -> str:
        """What was kept back and turned out to be no thought.

        Raises:
            ReaderError: Nothing was said at all.
        """
        held = "" if self._speaking else self._passed(without_thinking(self.heard))
        if not self._spoke:
            raise ReaderError("the chat model gave an empty answer")
        return held

    def _passed(self, text: str) -> str:
        text = text if self._spoke else text.lstrip()
        self._spoke = self._spoke or bool(text)
        return text


class AnswerFilter:
    """What of a streamed answer is meant to be heard, and what the model asks for instead of answering.

    A reply whose first line is `SEARCH: ...` asks back. That line is never passed on. Where the model may not ask, it
    is reported as what is missing, unless an answer follows it.

    Args:
        hold: As of `ThinkingFilter`.
        from_blocks: The answer is written from blocks, so a first line of that form is looked for.
        may_ask: The model may ask back.
    """

    def __init__(self, *, hold: bool, from_blocks: bool, may_ask: bool) -> None:
        self._spoken = ThinkingFilter(hold=hold)
        self._may_ask = may_ask
        self._first: str | None = "" if from_blocks else None
        self._missing = ""
        self._wrote = False

    @property
    def heard(self) -> str:
        """All that the model said."""
        return self._spoken.heard

    @property
    def request(self) -> str:
        """What the model asks for; empty where it answers, or where that is not clear yet."""
        return self._missing if self._may_ask else ""

    def feed(self, piece: str) -> str:
        """What can be passed on after this piece."""
        text = self._spoken.feed(piece)
        return "" if self.request else self._passed(text, last=False)

    def rest(self) -> str:
        """What was kept back and is passed on at the end.

        Raises:
            ReaderError: Nothing was said at all.
        """
        if self.request:
            return ""
        held = self._passed(self._spoken.rest(), last=True)
        if self.request or held or self._wrote:
            return held
        if not self._missing:
            raise ReaderError("the chat model gave an empty answer")
        return f"The documents found do not say: {self._missing}"

    def asked(self) -> Iterator[Request]:
        """The request, where there is one."""
        if self.request:
            yield Request(text=unescaped(self.request))

    def _passed(self, text: str, *, last: bool) -> str:
        if self._first is not None:
            self._first += text
            text = self._after_first_line(self._first, last=last)
        text = text if self._wrote else text.lstrip()
        self._wrote = self._wrote or bool(text)
        return text

    def _after_first_line(self, said: str, *, last: bool) -> str:
        """What follows the form, or all of it where there is none; nothing as long as that is not clear."""
        if not (_MAY_SEARCH.match(said) or _SEARCH.match(said)):
            self._first = None
            return said
        line, ended, rest = said.lstrip().partition("\n")
        if not (ended or last or len(line) > 2 * LONGEST_REQUEST):
            return ""
        self._first = None
        asked = _SEARCH.match(line)
        if asked is None:
            return said
        self._missing = " ".join(line[asked.end() :].split())[:LONGEST_REQUEST].strip("*`()<> ")
        return "" if self.request else rest


def _name(tag: re.Match[str]) -> str:
    return (tag[1] + tag[2]).lower()


def _after_thoughts(text: str) -> int:
    """Offset after the last thought that ended; 0 where none did."""
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
    """Where the candidate memory stands: to its last closing tag, else to the next part or the end of the text."""
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
