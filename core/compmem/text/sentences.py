"""Splits text into sentences, as character spans.

The rules work for several languages at once, without a model.
"""

import re
from collections.abc import Iterator
from itertools import islice

LINE = re.compile(r"[^\n]*\n|[^\n]+")
ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)$")
"""A Markdown heading."""
RULE = re.compile(r"([=\-~^\"'*+#.:`_])\1{2,}$")
"""A rule under or above a heading."""
MAX_LINE_CHARS = 1000
"""Maximum number of characters of a line that are checked."""
TEXT = re.compile(r"\S")

_BULLET = re.compile(r"\s*(?:[-*+•‣◦–·]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|[①-⑳])\s+\S")
_CODE_LINE = re.compile(
    r"\s*+(?:>>>|\.\.\. |\$ |```|~~~|@\w|(?:async )?def \w+\(|class \w+\b.*[:)]\s*$"
    r"|import [\w.]+(?:\s|$)|from [\w.]+ import |[\w.]+\([^()]*\)\s*+(?:->.*)?:?\s*+$|.*[;{}]\s*+$"
    r"|[\w.\[\]]+ [-+*/|&]?= \S)"
)
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
_CLOSERS = r"(?:[\"'”’»›)\]」』）】》〉]|\[\d{1,3}\])*+"  # possessive: no backtracking
_END = re.compile(
    rf"[。！？｡｡।؟۔]++{_CLOSERS}"
    rf"|(?<!．)．++(?!\d){_CLOSERS}"
    rf"|(?<![.!?…])[.!?…]++{_CLOSERS}(?=\s)"
    rf"|(?<=[\uac00-\ud7af])[.!?]++{_CLOSERS}(?=[\uac00-\ud7af])"
)
_QUOTED = re.compile(r"「[^「」]{0,300}」|『[^『』]{0,300}』|（[^（）]{0,300}）|“[^“”\n]{0,300}”(?=[\u3040-\u30ff])")
_AFTER_QUOTE = tuple("とっはがをにのもで、,，")
_NUMBER = re.compile(
    r"\s{0,8}(?:#{1,6}[ \t]+)?"
    r"(?:(?:§{1,2}|article|artikel|section|clause|chapter|paragraph|abschnitt|kapitel|step|part)[ \t]{0,8})?"
    r"\d{1,3}(?:\.\d{1,3}){0,4}",
    re.IGNORECASE,
)
"""The number in front of a list item, a heading or an article."""
_IN_BRACKETS = re.compile(r"\([^\s()]{1,8}$")
_LAST_WORD = re.compile(r"[^\s(\[{\"'“„«‘]+$")
_LATIN = "[A-Za-zÀ-ÖØ-öø-ÿ]"
_INITIALS = re.compile(rf"(?:{_LATIN}{{1,2}}\.)*{_LATIN}$|(?:{_LATIN}{{1,2}}\.)+{_LATIN}{{1,2}}$")
_SPACED_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:z\. ?B|d\. ?h|u\. ?a|i\. ?d\. ?R|u\. ?U|o\. ?Ä|v\. ?a|s\. ?o|i\. ?e|e\. ?g)$"
)
_NEXT_WORD = re.compile(r"\s*[\"'“”„«‘(\[*_¿¡]*(\w+)(\.?)")
_NEXT_SIGN = re.compile(r"\s*+[\"'“”„«‘(\[*_]*+([-+−–±≈~<>≤≥=#§№&%°€$£¥₹])")
_ABBREVIATIONS = frozenset(
    """dr mr mrs ms prof rev gen col sgt capt lt gov sen rep hon st mt ft jr sr messrs vs v cf al approx fig figs eq eqs
    sec ch chap vol vols pp p no nos art ed eds trans op cit dept univ inc ltd corp co bros jan feb mar apr jun jul aug
    sep sept oct nov dec hr fr nr bzw ca vgl sog abs abb bd bsp evtl ggf inkl exkl max min mio mrd hrsg jh str tel dipl
    ing geb gest z.b d.h u.a e.g i.e""".split()
)
_BEFORE_NUMBER = frozenset("ext est para paras qty anm kap rdnr rn ziff".split())
"""Abbreviations only before a number or a sign."""
_MAX_ABBREVIATION_CHARS = 7
_BEFORE_ORDINAL = frozenset(
    """der die das dem den des am im vom zum zur bis ab seit beim und jeder jede jedes jeden ein eine einen einem eines
    einer dieser diese dieses diesem diesen sein seine ihr ihre mein meine montag dienstag mittwoch donnerstag freitag
    samstag sonntag""".split()
)
_MONTHS = frozenset(
    """Januar Februar März April Mai Juni Juli August September Oktober November Dezember Jahrhundert""".split()
)
_STARTERS = frozenset(
    """the a an it he she they we you i this that these those there in on at by for from with as if when while after
    before since although however but and or so then thus his her its their our my what who where why how not no yes
    der die das ein eine er sie es wir ich ihr dies diese dieser dieses im am in auf bei mit nach seit und oder aber
    doch dann so da als wenn wie was wer wo warum heute damals danach dort nicht""".split()
)

_NOT_LAST = _STARTERS | frozenset("of to into than und von zu für über durch um".split())
"""Words that a line does not end with unless its sentence goes on."""


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences, in order and without overlap: each begins and ends with a character that is not blank.

    Text between two spans is blank. A heading, a bold line, a list item and a line of code are separate sentences; so
    is a row of separated values or a line with a label and its value, directly after another one or a line that ends
    with a colon. A short line without a mark at its end is separate too, if the next one begins with a capital or a
    digit. So is a line that begins with a date or a time, as in a log, if the next or an earlier line of its paragraph
    does so too. A short line directly above an indented line of prose, as in a list of definitions, is part of the
    sentence there.
    """
    return list(sentence_spans(text, 0, len(text)))


def sentence_spans(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The sentence spans of a part of the text, one by one."""
    for first, last, whole in _runs(text, start, end):
        at = first
        for match in () if whole else _ends(text, first, last):
            if _is_border(text, at, match, last):
                yield from _trimmed(text, at, match.end())
                at = match.end()
        yield from _trimmed(text, at, last)


def is_labelled(line: str) -> bool:
    """Whether a line is a label with its value."""
    return _FIELD.match(line) is not None


def is_separated(line: str) -> bool:
    """Whether a line is a row of values between commas, semicolons or tabs, as in a CSV file."""
    return sum(1 for _ in islice(_SEPARATOR.finditer(line), _MIN_SEPARATORS)) == _MIN_SEPARATORS


def is_row(sentence: str) -> bool:
    """Whether a sentence is a row of a Markdown table or of a CSV file."""
    return sentence.startswith("|") or (not sentence.endswith((".", "!", "?")) and is_separated(sentence))


def _ends(text: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """The marks that may end a sentence, except those inside a quotation."""
    quotations = _QUOTED.finditer(text, start, end)
    quoted = next(quotations, None)
    for match in _END.finditer(text, start, end):
        while quoted and quoted.end() < match.end():
            quoted = next(quotations, None)
        if not (quoted and quoted.start() < match.start() and match.end() < quoted.end()):
            yield match


def _runs(text: str, begin: int, end: int) -> Iterator[tuple[int, int, bool]]:
    """Spans of lines that may contain a sentence across line breaks: wrapped prose, or a single separate line.

    The third part says whether the span is one row of a table, which is not split whatever its cells contain.
    """
    start = begin
    indent = longest = 0
    alone = blank = True
    short = False
    item = recorded = begins_record = row = logged = hangs = term = False
    for match in LINE.finditer(text, begin, end):
        line = text[match.start() : match.end()] if match.end() - match.start() < MAX_LINE_CHARS else _head(match)
        if not line.strip():
            blank = True
            continue
        words = line.strip()
        piped = bool(_PIPED.match(line))
        marked = (
            _CODE_LINE.match(line) or ATX.match(line.rstrip()) or RULE.match(line.rstrip()) or _BOLD_LINE.match(line)
        )
        own = piped or bool(marked)
        bullet = bool(_BULLET.match(line))
        deep = len(line) - len(line.lstrip())
        longest = _longest(text, match.start(), end) if blank else max(longest, match.end() - match.start() - deep)
        ended = short and (words[0].isupper() or words[0].isdigit())
        separated = is_separated(line)
        record = separated or is_labelled(line)
        stamped = (blank or not hangs) and bool(_STAMP.match(text, match.start(), match.end()))
        hangs, logged = _hangs(words), logged and not blank
        logged = logged or (stamped and not hangs and bool(_STAMP.match(text, match.end(), end)))
        apart = alone or blank or own or bullet or ended or (record and (recorded or begins_record))
        apart = apart or (stamped and logged)
        defines = term and not (blank or own or bullet) and (len(words) >= _SHORT_LINE or words[-1] in ".!?")
        term = not (deep or own or bullet or words[0] in "<.=" or _goes_on(words)) and len(words) < _SHORT_LINE
        term = term and bool(_INDENTED.match(text, match.end(), end))
        apart = apart or (deep > indent + 1 and not item) or (term and indent > 0)
        if match.start() > start and apart and not defines:
            yield start, match.start(), row
            start = match.start()
        begins = match.start() == start
        term = term and begins
        begins_record = record if begins else begins_record
        row = begins and (piped or (separated and recorded))
        item = bullet or (item and not blank and not ended)
        short = len(words) < min(_SHORT_LINE, _SHORT_SHARE * longest) and not _goes_on(words)
        indent, alone, blank, recorded = deep, own, False, record or line.rstrip().endswith(":")
    if start < end:
        yield start, end, row


def _goes_on(line: str) -> bool:
    """Whether the sentence at the end of a line seems to go on in the next one, or to end with the line by a mark."""
    return line[-1] in _AT_END or line.rsplit(None, 1)[-1].lower() in _NOT_LAST


def _hangs(line: str) -> bool:
    """Whether a line surely ends in the middle of a sentence."""
    return line[-1] in ",;(" or line.rsplit(None, 1)[-1].lower() in _OPEN_WORDS


def _longest(text: str, begin: int, end: int) -> int:
    """Length of the longest of the first lines of the paragraph that begins there, without indent."""
    longest = 0
    for match in islice(LINE.finditer(text, begin, end), _LINES_AHEAD):
        found = TEXT.search(text, match.start(), match.end())
        if found is None:
            break
        longest = max(longest, match.end() - found.start())
    return longest


def _head(line: re.Match[str]) -> str:
    """The beginning of a long line, as far as it is checked."""
    return line.string[line.start() : line.start() + 100] + " x"


def _is_border(text: str, start: int, match: re.Match[str], end: int) -> bool:
    """Whether a mark ends a sentence that began at `start`."""
    mark = match[0]
    if mark == "." and _NUMBER.fullmatch(text, start, match.start()):
        return False
    if mark == ".)" and _IN_BRACKETS.search(text, max(start, match.start() - 9), match.start()):
        return False  # an abbreviation in brackets
    rest = text[match.end() : min(end, match.end() + 40)]
    if not mark[0].isascii() and mark[0] != "…":
        return mark[-1] not in "」』）" or not rest.startswith(_AFTER_QUOTE)
    following = _NEXT_WORD.match(rest)
    before = text[max(start, match.start() - 30) : match.start()]
    if following is None:
        sign = _NEXT_SIGN.match(rest)
        return mark != "." or sign is None or not _is_abbreviated(before, sign[1], False)
    word = following[1]
    if word[0].islower():
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    return not _is_abbreviated(before, word, bool(following[2]))


def _is_abbreviated(before: str, word: str, dotted: bool) -> bool:
    """Whether the dot after `before` belongs to an abbreviation, initial or ordinal that a word or sign follows."""
    if word[0].isdigit() and before.endswith(("str", "Str")):
        return True  # a street before the number of a house
    if before[-_MAX_ABBREVIATION_CHARS:].isalpha() and len(before) >= _MAX_ABBREVIATION_CHARS:
        return False
    last = _LAST_WORD.search(before)
    if last is None:
        return False
    token = last[0]
    if _SPACED_ABBREVIATION.search(before) or token.lower() in _ABBREVIATIONS:
        return True
    if token.lower() in _BEFORE_NUMBER and not word[0].isalpha():
        return True
    starter = word.lower() in _STARTERS and (len(word) > 1 or word in ("I", "A"))
    if token.isdigit():
        if word[0].isdigit():
            return dotted
        leading = before[: last.start()].split()[-1:]
        dated = bool(leading) and leading[0].rstrip(".").isdigit()
        ordinal = not leading or dated or leading[0].lower() in _BEFORE_ORDINAL or word in _MONTHS
        return len(token) <= 2 and ordinal and not starter
    if _INITIALS.match(token):
        named = len(token) > 1 or word[0].isalnum() or word == "&"
        return named and (not starter or dotted)
    return False


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The span without surrounding blanks, unless it is blank."""
    if found := TEXT.search(text, start, end):
        while text[end - 1].isspace():
            end -= 1
        yield found.start(), end
