"""Splits text into sentences, as character spans.

The rules work for several languages at once, without a model.
"""

import re
from collections.abc import Iterator

from compmem.text.line_runs import STARTERS, TEXT, is_separated, line_runs

_CLOSERS = r"(?:[\"'”’»›)\]」』）】》〉]|\[\d{1,3}\])*+"  # possessive: no backtracking
_END = re.compile(
    rf"[。！？｡｡।؟۔]++{_CLOSERS}"
    rf"|(?<!．)．++(?!\d){_CLOSERS}"
    rf"|(?<![.!?…])[.!?…]++{_CLOSERS}(?=\s)"
    rf"|(?<=[\uac00-\ud7af])[.!?]++{_CLOSERS}(?=[\uac00-\ud7af])"
)
_QUOTED = re.compile(
    r"`[^`\n]{0,300}`|「[^「」]{0,300}」|『[^『』]{0,300}』|（[^（）]{0,300}）|“[^“”\n]{0,300}”(?=[\u3040-\u30ff])"
)
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
    ing geb gest z.b d.h u.a e.g i.e
    sra srta dña ud uds núm núms pág págs avda mme mlle tél éd""".split()
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
    for run in line_runs(text, start, end):
        at = run.start
        for match in () if run.is_row else _ends(text, run.start, run.end):
            if _is_border(text, at, match, run.end):
                yield from _trimmed(text, at, match.end())
                at = match.end()
        yield from _trimmed(text, at, run.end)


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
    starter = word.lower() in STARTERS and (len(word) > 1 or word in ("I", "A"))
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
