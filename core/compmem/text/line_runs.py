"""Groups the lines of a text: wrapped prose belongs together, list items, headings, rows and records stand apart."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

LINE = re.compile(r"[^\n]*\n|[^\n]+")
ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)$")
"""A Markdown heading."""
RULE = re.compile(r"([=\-~^\"'*+#.:`_])\1{2,}$")
"""A rule under or above a heading."""
_FENCE = re.compile(r" {0,3}(`{3,}+(?!.*`)|~{3,}+)(.*)")
MAX_LINE_CHARS = 1000
"""Maximum number of characters of a line that are checked."""
TEXT = re.compile(r"\S")

STARTERS = frozenset(
    """the a an it he she they we you i this that these those there in on at by for from with as if when while after
    before since although however but and or so then thus his her its their our my what who where why how not no yes
    der die das ein eine er sie es wir ich ihr dies diese dieser dieses im am in auf bei mit nach seit und oder aber
    doch dann so da als wenn wie was wer wo warum heute damals danach dort nicht""".split()
)
"""Words that many sentences begin with."""

_BULLET = re.compile(r"\s*(?:[-*+•‣◦–·]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|[①-⑳])\s+\S")
_CODE_LINE = re.compile(
    r"\s*+(?:>>>|\.\.\. |\$ |```|~~~|@\w|(?:async )?def \w+\(|class \w+\b.*[:)]\s*$"
    r"|import [\w.]+(?:\s|$)|from [\w.]+ import |[\w.]+\([^()]*\)\s*+(?:->.*)?:?\s*+$"
    r"|[\w.\[\]]+ [-+*/|&]?= \S)"
)
_CODE_ENDS = (";", "{", "}")
_PROSE_WORDS = 6
_PROSE_SHARE = 0.7
"""A line that ends as code is prose if it has so many words, and if this share of what stands between blanks are."""
_BOLD_LINE = re.compile(r"\s{0,8}\*\*[^*]++\*\*\s*$")
_PIPED = re.compile(r"\s*+\|.*\|\s*$")
"""A row of a Markdown table."""
_FIELD = re.compile(r"\s{0,8}[^\W\d_][\w()/&.'’ \-]{0,40}+:(?:\s|$)")
"""A label and its value."""
_TIME = r"\d{1,2}:\d\d(?::\d\d)?(?: ?[AaPp]\.?[Mm]\.?)?(?!\w)"
_DATE = r"(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{1,2}([/.])\d{1,2}\2(?:\d{4}|\d{2}))(?!\.?\d)"
_NAME = r"[^\W\d_][\w.'’-]{0,30}"
_STAMP = re.compile(
    rf"[ \t]{{0,8}}+(?:[\[(<]?(?:{_DATE}|{_TIME})"
    r"|(?:\d{4}(?: ?[-–/] ?\d{2,4})?|\d{1,2}\.? [^\W\d_]{3,9} \d{4}|[^\W\d_]{3,9} \d{1,2}, \d{4})(?::| ?[–—]| -)(?=\s)"
    rf"|[^\W\d_]{{3}}\.? {{1,2}}\d{{1,2}} {_TIME}"
    rf"|{_NAME} {{1,2}}[\[(<]?\d{{4}}-\d\d-\d\d[ T]\d"
    rf"|{_NAME}(?: {_NAME}){{0,2}},? {{1,2}}[\[(<]?{_TIME}[\])>]?(?=:| [-–—|>]))"
)
"""A date, a time, or a name and a time, as lines of logs, chats and timelines begin; a year only before a mark."""
_OPEN_WORDS = frozenset(
    """the a an in on at by for from with as of to into than and or between until about der die das im am um von bis zu
    und oder mit""".split()
)
_NOT_LAST = STARTERS | frozenset("of to into than und von zu für über durch um".split())
"""Words that a line does not end with unless its sentence goes on."""
_SEPARATOR = re.compile(r"(?<!\d),(?=\S)|,(?=[^\s\d])|;(?=\S)|(?<=\S)\t")
"""Between two cells of a row; not a comma between digits, as in a number or a list of references, and no indent."""
_MIN_SEPARATORS = 2
_INDENTED = re.compile(r"(?: {2}|\t)[ \t]*+\S")
_SHORT_LINE = 50
_SHORT_SHARE = 0.7
"""A line is short below this many characters and this share of the longest line of its paragraph."""
_AT_END = frozenset("-–—…,.!?:;/&+=([{<«„、，。！？：；")
"""A line that ends with one of these is part of a sentence that goes on, or has ended."""
_LINES_AHEAD = 64
"""Lines of a paragraph that are looked at for the longest one before the first is read."""


@dataclass(frozen=True, slots=True)
class LineRun:
    """Lines that belong together: wrapped prose, or a single line that stands apart."""

    start: int
    end: int
    is_row: bool
    """Whether it is one row of a table, which is one sentence whatever its cells contain."""


def line_runs(text: str, start: int, end: int) -> Iterator[LineRun]:
    """The runs of lines of a part of the text, in order; together they are the whole part."""
    grouping, after_blank = _Grouping(text, start, end), True
    for match in LINE.finditer(text, start, end):
        if TEXT.search(text, match.start(), match.end()) is None:
            after_blank = True
            continue
        line = _Line(text, match.start(), match.end(), after_blank)
        after_blank = False
        if run := grouping.add(line):
            yield run
    if run := grouping.last():
        yield run


def open_fence(line: str, before: str = "") -> str:
    """The marks that began the block of code that goes on behind a line; empty outside of one.

    As in Markdown, a line of the same marks, at least as many and nothing else, ends a block.

    Args:
        line: The line.
        before: The marks that began the block of code that goes on before the line; empty outside of one.
    """
    fence = _FENCE.match(line)
    if not (fence and before):
        return fence[1] if fence else before
    return "" if fence[1].startswith(before) and not fence[2].strip() else before


def is_labelled(line: str) -> bool:
    """Whether a line is a label with its value."""
    return _FIELD.match(line) is not None


def is_separated(line: str) -> bool:
    """Whether a line is a row of values between commas, semicolons or tabs, as in a CSV file."""
    return sum(1 for _ in islice(_SEPARATOR.finditer(line), _MIN_SEPARATORS)) == _MIN_SEPARATORS


def is_code(line: str) -> bool:
    """Whether a line looks like one of code or of settings."""
    return _CODE_LINE.match(line) is not None or _ends_as_code(line.strip())


def _ends_as_code(line: str) -> bool:
    """Whether a line ends with a mark that ends a line of code, and is no prose."""
    if not line.endswith(_CODE_ENDS):
        return False
    parts = line.split()
    count = sum(part.strip("(.:;)").isalpha() for part in parts)
    return count < _PROSE_WORDS or count < _PROSE_SHARE * len(parts)


class _Line:
    """A line that is not blank, and what its own characters say about it."""

    def __init__(self, text: str, start: int, end: int, after_blank: bool) -> None:
        line = text[start:end] if end - start < MAX_LINE_CHARS else f"{text[start : start + 100]} x"
        words = line.strip()
        self.start, self.end, self.after_blank, self.words = start, end, after_blank, words
        self.indent = len(line) - len(line.lstrip())
        self.is_table_row = _PIPED.match(line) is not None
        self.stands_apart = self.is_table_row or any(
            (
                is_code(line),
                ATX.match(line.rstrip()),
                RULE.match(line.rstrip()),
                _BOLD_LINE.match(line),
            )
        )
        """A table row, a line of code, a heading, a rule or a bold line."""
        self.is_item = _BULLET.match(line) is not None
        self.is_separated = is_separated(line)
        self.is_record = self.is_separated or is_labelled(line)
        self.goes_on = words[-1] in _AT_END or words.rsplit(None, 1)[-1].lower() in _NOT_LAST
        """Whether its last sentence seems to go on in the next line, or ends with a mark."""
        self.hangs = words[-1] in ",;(" or words.rsplit(None, 1)[-1].lower() in _OPEN_WORDS
        """Whether it surely ends in the middle of a sentence."""


class _Grouping:
    """The run of lines so far, and what earlier lines say about the next one."""

    def __init__(self, text: str, start: int, end: int) -> None:
        self._text, self._start, self._end = text, start, end
        self._previous: _Line | None = None
        self._longest = 0
        """Characters of the longest line of the paragraph."""
        self._is_row = self._begins_with_record = False
        """Of the run so far."""
        self._in_list = self._in_log = False
        self._is_short = self._is_term = False
        """Of the previous line."""

    def add(self, line: _Line) -> LineRun | None:
        """Add the next line. Returns the run before it if the line begins another one."""
        if line.after_blank:
            self._longest = _longest_line(self._text, line.start, self._end)
        self._longest = max(self._longest, line.end - line.start - line.indent)
        is_new = self._is_short and (line.words[0].isupper() or line.words[0].isdigit())
        is_entry, is_term = self._is_log_entry(line), self._may_be_term(line)
        finished = None
        if line.start > self._start and self._begins_run(line, is_new or is_entry, is_term):
            finished, self._start = LineRun(self._start, line.start, self._is_row), line.start
        is_first = line.start == self._start
        self._is_row = is_first and (line.is_table_row or (line.is_separated and self._after_record()))
        self._begins_with_record = line.is_record if is_first else self._begins_with_record
        self._in_list = line.is_item or (self._in_list and not line.after_blank and not is_new)
        self._is_term = is_term and is_first
        self._is_short = len(line.words) < min(_SHORT_LINE, _SHORT_SHARE * self._longest) and not line.goes_on
        self._previous = line
        return finished

    def last(self) -> LineRun | None:
        """The run of the last lines; None if there are none."""
        return LineRun(self._start, self._end, self._is_row) if self._start < self._end else None

    def _begins_run(self, line: _Line, is_new: bool, is_term: bool) -> bool:
        """Whether a line stands apart from the run before it.

        Args:
            line: The line.
            is_new: It begins as a sentence below a short line does, or as an entry of a log.
            is_term: It may be a term with an indented definition below.
        """
        previous = self._previous
        if previous is None or line.after_blank or line.stands_apart or line.is_item:
            return True
        if self._is_term and (len(line.words) >= _SHORT_LINE or line.words[-1] in ".!?"):
            return False  # the definition of the term above
        return (
            previous.stands_apart
            or is_new
            or (line.is_record and (self._after_record() or self._begins_with_record))
            or (line.indent > previous.indent + 1 and not self._in_list)
            or (is_term and previous.indent > 0)
        )

    def _after_record(self) -> bool:
        previous = self._previous
        return previous is not None and (previous.is_record or previous.words.endswith(":"))

    def _is_log_entry(self, line: _Line) -> bool:
        """Whether a line begins with a date or a time, as the next or an earlier line of its paragraph does."""
        hangs = self._previous is not None and self._previous.hangs and not line.after_blank
        is_stamped = not hangs and _STAMP.match(self._text, line.start, line.end) is not None
        if line.after_blank:
            self._in_log = False
        if is_stamped and not line.hangs and _STAMP.match(self._text, line.end, self._end):
            self._in_log = True
        return is_stamped and self._in_log

    def _may_be_term(self, line: _Line) -> bool:
        """Whether a line may be a term, in a list of definitions: it is short, and the next line is indented."""
        if line.indent or line.stands_apart or line.is_item or line.words[0] in "<.=" or line.goes_on:
            return False
        return len(line.words) < _SHORT_LINE and _INDENTED.match(self._text, line.end, self._end) is not None


def _longest_line(text: str, start: int, end: int) -> int:
    """Length of the longest of the first lines of the paragraph that begins there, without indent."""
    longest = 0
    for match in islice(LINE.finditer(text, start, end), _LINES_AHEAD):
        found = TEXT.search(text, match.start(), match.end())
        if found is None:
            break
        longest = max(longest, match.end() - found.start())
    return longest
