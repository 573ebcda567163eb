"""Text to chunks that cover it exactly, and text to sentences.

Borders are looked for where they cost a reader least: headings, then paragraphs, then sentences, then words. No model
is needed; how many tokens a text has is asked of the counter that is handed in.
"""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from compmem.schema import Chunk, Document

logger = logging.getLogger(__name__)

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Token counts of many texts at once, each with whatever the tokenizer adds to a text of its own."""

CHARS_PER_TOKEN = 16
"""Most characters of a chunk per token it may have: blanks and unknown words are free to some tokenizers."""
_COUNT_CHARS = 1 << 20
_LONGEST_HEADING = 120

_LINE = re.compile(r"[^\n]*\n|[^\n]+")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)$")
_RULE = re.compile(r"([=\-~^\"'*+#.:`_])\1{2,}$")
_NUMBERED = re.compile(r"(\d{1,3}(?:\.\d{1,3})*)\.?[ \t]+([^\W\d_].*)$")
_CLASS = re.compile(r"([ \t]*)class[ \t]+(?:(\w[\w.]*)[ \t]*(?:\(.*\)[ \t]*:?|:)|([A-Z]\w*))$")
_DEF = re.compile(r"([ \t]*)(?:async[ \t]+)?def[ \t]+(\w+)[ \t]*\(.*\)[ \t]*(?:->.*)?:?$")
_NUMBERED_LEVEL, _CODE_LEVEL = 10, 20
_BORDERS = "、，；："

_BULLET = re.compile(r"\s*(?:[-*+•‣◦–·]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|[①-⑳])\s+\S")
_CODE_LINE = re.compile(
    r"\s*(?:>>>|\.\.\. |\$ |```|~~~|\|.*\|\s*$|@\w|(?:async )?def \w+\(|class \w+\b.*[:)]\s*$"
    r"|import [\w.]+(?:\s|$)|from [\w.]+ import |[\w.]+\([^()]*\)\s*(?:->.*)?:?\s*$|.*[;{}]\s*$"
    r"|[\w.\[\]]+ [-+*/|&]?= \S)"
)
_CLOSERS = r"(?:[\"'”’»›)\]」』）】》〉]|\[\d{1,3}\])*+"  # possessive: nothing is tried twice
_END = re.compile(
    rf"[。！？｡｡।؟۔]++{_CLOSERS}"
    rf"|(?<!．)．++(?!\d){_CLOSERS}"
    rf"|(?<![.!?…])[.!?…]++{_CLOSERS}(?=\s)"
    rf"|(?<=[\uac00-\ud7af])[.!?]++{_CLOSERS}(?=[\uac00-\ud7af])"
)
_QUOTED = re.compile(r"「[^「」]{0,300}」|『[^『』]{0,300}』|（[^（）]{0,300}）|“[^“”\n]{0,300}”(?=[\u3040-\u30ff])")
_AFTER_QUOTE = tuple("とっはがをにのもで、,，")
_LAST_WORD = re.compile(r"[^\s(\[{\"'“„«‘]+$")
_LATIN = "[A-Za-zÀ-ÖØ-öø-ÿ]"
_INITIALS = re.compile(rf"(?:{_LATIN}{{1,2}}\.)*{_LATIN}$|(?:{_LATIN}{{1,2}}\.)+{_LATIN}{{1,2}}$")
_SPACED_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:z\. ?B|d\. ?h|u\. ?a|i\. ?d\. ?R|u\. ?U|o\. ?Ä|v\. ?a|s\. ?o|i\. ?e|e\. ?g)$"
)
_NEXT_WORD = re.compile(r"\s*[\"'“”„«‘(\[*_¿¡]*(\w+)(\.?)")
_ABBREVIATIONS = frozenset(
    """dr mr mrs ms prof rev gen col sgt capt lt gov sen rep hon st mt ft jr sr messrs vs v cf al approx fig figs eq eqs
    sec ch chap vol vols pp p no nos art ed eds trans op cit dept univ inc ltd corp co bros jan feb mar apr jun jul aug
    sep sept oct nov dec hr fr nr bzw ca vgl sog abs abb bd bsp evtl ggf inkl exkl max min mio mrd hrsg jh str tel dipl
    ing geb gest z.b d.h u.a e.g i.e""".split()
)
_LONGEST_ABBREVIATION = 7
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


@dataclass(frozen=True, slots=True)
class _Unit:
    """A run of the text that is not broken again: a block, a sentence or a piece of one."""

    start: int
    end: int
    level: int = 0
    heading: str = ""
    tokens: int = 0
    opens: bool = False
    """It begins a paragraph that is broken."""


def split(document: Document, *, chunk_tokens: int, count: TokenCounter) -> list[Chunk]:
    """The chunks of a document, in order; together they are its text.

    A paragraph goes whole into a chunk where it fits. A heading, and a paragraph that must be broken, begin a new chunk
    once the present one is half full, so that a chunk is of one matter and short sections leave no chunks of a line.

    Args:
        document: Text to cut, or chunks to keep as they are.
        chunk_tokens: Most tokens in a chunk, as `count` counts them.
        count: The token counter; asked in batches and never twice for the same piece.

    Returns:
        No chunks where the text is blank. A chunk of nothing but blanks occurs only inside a longer run of them.
    """
    if not document.text.strip():
        return []
    counter = _Counter(document.text, count)
    if document.chunks is not None:
        return _given(document, chunk_tokens, counter)
    limit = chunk_tokens - counter.overhead
    chunks: list[Chunk] = []
    path: list[tuple[int, str]] = []
    for group in _within_limit(_pack(_units(limit, counter), limit), limit, counter):
        start, end = group[0].start, group[-1].end
        text = document.text[start:end]
        chunks.append(
            Chunk(
                text=text,
                document_id=document.id,
                ordinal=len(chunks),
                start=start,
                title=document.title,
                headings=_headings(group, path),
                context=document.context,
                sentences=tuple(sentences(text)),
                metadata=document.metadata,
            )
        )
    return chunks


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans of the sentences, in order and apart: each begins and ends with a character that is not blank.

    What lies between two spans is blank. A heading, a list item and a line of code are sentences of their own.
    """
    spans: list[tuple[int, int]] = []
    for start, end in _runs(text):
        quoted = [m.span() for m in _QUOTED.finditer(text, start, end)]
        at = start
        for match in _END.finditer(text, start, end):
            while quoted and quoted[0][1] < match.end():
                quoted.pop(0)
            inside = bool(quoted) and quoted[0][0] < match.start() and match.end() < quoted[0][1]
            if not inside and _is_border(text, at, match, end):
                _append_trimmed(spans, text, at, match.end())
                at = match.end()
        _append_trimmed(spans, text, at, end)
    return spans


class _Counter:
    """Counts spans of one text in batches, without what the tokenizer adds to each text."""

    def __init__(self, text: str, count: TokenCounter) -> None:
        self.text = text
        self._count = count
        self.overhead = count([""])[0]

    def __call__(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens of each span, `overhead` taken off."""
        counts: list[int] = []
        batch: list[str] = []
        chars = 0
        for start, end in spans:
            batch.append(self.text[start:end])
            chars += end - start
            if chars >= _COUNT_CHARS:
                counts.extend(self._count(batch))
                batch, chars = [], 0
        if batch:
            counts.extend(self._count(batch))
        return [n - self.overhead for n in counts]


def _given(document: Document, chunk_tokens: int, counter: _Counter) -> list[Chunk]:
    """The chunks that came with the document, completed."""
    assert document.chunks is not None
    chunks: list[Chunk] = []
    start = 0
    for given in document.chunks:
        chunk = Chunk(text=given) if isinstance(given, str) else given
        if not chunk.text:
            continue
        chunks.append(
            replace(
                chunk,
                document_id=document.id,
                ordinal=len(chunks),
                start=start,
                title=document.title or chunk.title,
                context=document.context or chunk.context,
                sentences=_checked(chunk) or tuple(sentences(chunk.text)),
                metadata={**document.metadata, **chunk.metadata},
            )
        )
        start = chunks[-1].end
    counts = counter([(c.start, c.end) for c in chunks])
    large = [c for c, n in zip(chunks, counts, strict=True) if n + counter.overhead > chunk_tokens]
    if large:
        logger.info(
            "document %r: %d given chunk(s) have more than chunk_tokens=%d tokens, the first is %r; kept as given",
            document.id, len(large), chunk_tokens, large[0].id,
        )  # fmt: skip
    return chunks


def _checked(chunk: Chunk) -> tuple[tuple[int, int], ...]:
    at = 0
    for start, end in chunk.sentences:
        if not at <= start < end <= len(chunk.text):
            raise ValueError(f"sentence span {(start, end)!r} is out of order or outside a chunk of {len(chunk.text)}")
        at = end
    return chunk.sentences


def _headings(group: Sequence[_Unit], path: list[tuple[int, str]]) -> tuple[str, ...]:
    """The headings a chunk stands under where its own text begins; `path` goes on to the chunk's end."""
    found: tuple[str, ...] | None = None
    for unit in group:
        if unit.level:
            while path and path[-1][0] >= unit.level:
                path.pop()
            path.append((unit.level, unit.heading))
        elif found is None:
            found = tuple(heading for _, heading in path)
    return tuple(heading for _, heading in path) if found is None else found


def _units(limit: int, counter: _Counter) -> list[_Unit]:
    """The text as units of at most `limit` tokens each: blocks, and what the larger ones break into."""
    text = counter.text
    small: list[_Unit] = []
    level: list[_Unit] = list(_blocks(text))
    for breaker in (_into_sentences, _into_pieces(limit)):
        large = _sift(level, limit, counter, small)
        level = [
            _Unit(a, b, u.level, u.heading, opens=a == u.start and (u.opens or breaker is _into_sentences))
            for u in large
            for a, b in breaker(text, u.start, u.end)
        ]
    while level:
        large = _sift(level, limit, counter, small)
        level = []
        for unit in large:
            middle = _cut(text, unit.start, unit.end, max(1, (unit.end - unit.start) // 2))
            if middle == unit.end:
                small.append(unit)
            else:
                level += [_Unit(a, b, unit.level, unit.heading) for a, b in ((unit.start, middle), (middle, unit.end))]
    return sorted(small, key=lambda unit: unit.start)


def _sift(units: Sequence[_Unit], limit: int, counter: _Counter, small: list[_Unit]) -> list[_Unit]:
    """Units larger than the limit; the others are counted and added to `small`."""
    most = limit * CHARS_PER_TOKEN
    large = [u for u in units if u.end - u.start > most]
    rest = [u for u in units if u.end - u.start <= most]
    for unit, tokens in zip(rest, counter([(u.start, u.end) for u in rest]), strict=True):
        if tokens <= limit:
            small.append(_Unit(unit.start, unit.end, unit.level, unit.heading, tokens, unit.opens))
        else:
            large.append(unit)
    return large


def _into_sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans that cover a block, each a sentence with the blanks after it."""
    starts = [start + a for a, _ in sentences(text[start:end])][1:]
    yield from zip([start, *starts], [*starts, end], strict=True)


def _into_pieces(limit: int) -> Callable[[str, int, int], Iterator[tuple[int, int]]]:
    """A breaker into pieces of at most `limit` characters, which seldom have more tokens than that."""

    def breaker(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        while start < end:
            middle = _cut(text, start, end, limit)
            yield start, middle
            start = middle

    return breaker


def _cut(text: str, start: int, end: int, size: int) -> int:
    """The last word border within `size` characters of `start`; there, where the text has none."""
    if end - start <= size:
        return end if size > 1 or end - start == 1 else start + 1
    borders = (at for at in range(start + size, start, -1) if text[at - 1].isspace() or text[at - 1] in _BORDERS)
    return next(borders, start + size)


def _pack(units: Sequence[_Unit], limit: int) -> list[list[_Unit]]:
    """Units put together greedily; no group ends with a heading that fits into the next."""
    groups: list[list[_Unit]] = []
    group: list[_Unit] = []
    tokens = 0
    for unit in units:
        full = tokens + unit.tokens > limit or unit.end - group[0].start > limit * CHARS_PER_TOKEN if group else False
        turn = (unit.level > 0 or unit.opens) and tokens * 2 >= limit and not all(u.level for u in group)
        if full or turn:
            body = len(group)
            while body and group[body - 1].level:
                body -= 1
            if not body or sum(u.tokens for u in group[body:]) + unit.tokens > limit:
                body = len(group)
            groups.append(group[:body])
            group = group[body:]
            tokens = sum(u.tokens for u in group)
        group.append(unit)
        tokens += unit.tokens
    return [*groups, group]


def _within_limit(groups: Sequence[list[_Unit]], limit: int, counter: _Counter) -> list[list[_Unit]]:
    """The groups, halved where the whole has more tokens than its parts had together."""
    done = [g for g in groups if len(g) == 1]
    level = [g for g in groups if len(g) > 1]
    while level:
        counts = counter([(g[0].start, g[-1].end) for g in level])
        large = [g for g, n in zip(level, counts, strict=True) if n > limit]
        done += [g for g, n in zip(level, counts, strict=True) if n <= limit]
        halves = [half for g in large for half in (g[: len(g) // 2], g[len(g) // 2 :])]
        done += [g for g in halves if len(g) == 1]
        level = [g for g in halves if len(g) > 1]
    return sorted(done, key=lambda group: group[0].start)


def _blocks(text: str) -> Iterator[_Unit]:
    """Paragraphs and headings, each with the blank lines after it."""
    styles: dict[tuple[str, bool], int] = {}
    spans = [m.span() for m in _LINE.finditer(text)]
    fence = ""
    start = at = 0
    blank = True
    i = 0
    while i < len(spans):
        line = text[spans[i][0] : spans[i][1]].rstrip() if spans[i][1] - spans[i][0] < 1000 else "x"
        if (mark := _FENCE.match(line)) and fence in ("", mark[1]):
            fence = "" if fence else mark[1]
        found = None if fence else _heading(text, spans, i, line, blank, styles)
        if (found or (line and blank)) and text[start : spans[i][0]].strip():
            yield _Unit(start, spans[i][0])
            start = spans[i][0]
        if found:
            level, title, lines = found
            i += lines
            while i < len(spans) and not text[spans[i][0] : spans[i][1]].strip():
                i += 1
            at = spans[i - 1][1]
            yield _Unit(start, at, level, title)
            start, blank = at, True
            continue
        blank = not line
        i += 1
    if start < len(text):
        yield _Unit(start, len(text))


def _heading(
    text: str, spans: Sequence[tuple[int, int]], i: int, line: str, blank: bool, styles: dict[tuple[str, bool], int]
) -> tuple[int, str, int] | None:
    """Level, title and number of lines of the heading that begins with line `i`."""
    if not line or len(line) > _LONGEST_HEADING:
        return None
    if (match := _ATX.match(line)) and (title := match[2].rstrip("#").strip()):
        return len(match[1]), title, 1
    if not blank:
        return None

    def after(n: int) -> str:
        return text[slice(*spans[i + n])].rstrip()[: _LONGEST_HEADING + 1] if i + n < len(spans) else ""

    if (over := _RULE.match(line)) and after(2) == line and 0 < len(after(1).strip()) <= len(line):
        return styles.setdefault((over[1], True), len(styles) + 1), after(1).strip(), 3
    if (under := _RULE.match(after(1))) and line[0] not in " \t>|-*+" and not _RULE.match(line):
        if under[1] in "=-" or len(after(1)) >= len(line):
            return styles.setdefault((under[1], False), len(styles) + 1), line, 2
        return None
    return _bare_heading(line, alone=not after(1))


def _bare_heading(line: str, *, alone: bool) -> tuple[int, str, int] | None:
    """A numbered heading between blank lines, or the first line of a class or function."""
    if (match := _NUMBERED.match(line)) and alone and line[-1] not in ".。!?:;," and len(line.split()) <= 12:
        return _NUMBERED_LEVEL + match[1].count("."), match[2], 1
    if match := _CLASS.match(line):
        return _CODE_LEVEL + len(match[1].expandtabs()), match[2] or match[3], 1
    if match := _DEF.match(line):
        return _CODE_LEVEL + len(match[1].expandtabs()), match[2], 1
    return None


def _runs(text: str) -> Iterator[tuple[int, int]]:
    """Spans of lines that may hold one sentence across them: wrapped prose, or a line that stands for itself."""
    start = 0
    indent = 0
    alone = blank = True
    item = False
    for match in _LINE.finditer(text):
        line = match[0] if match.end() - match.start() < 1000 else match[0][:100] + " x"
        if not line.strip():
            blank = True
            continue
        own = bool(_CODE_LINE.match(line) or _ATX.match(line.rstrip()) or _RULE.match(line.rstrip()))
        bullet = bool(_BULLET.match(line))
        deep = len(line) - len(line.lstrip())
        if match.start() > start and (alone or blank or own or bullet or (deep > indent + 1 and not item)):
            yield start, match.start()
            start = match.start()
        item = bullet or (item and not blank)
        indent, alone, blank = deep, own, False
    if start < len(text):
        yield start, len(text)


def _is_border(text: str, start: int, match: re.Match[str], end: int) -> bool:
    """Whether the mark found ends a sentence that began at `start`."""
    mark = match[0]
    rest = text[match.end() : min(end, match.end() + 40)]
    if not mark[0].isascii() and mark[0] != "…":
        return mark[-1] not in "」』）" or not rest.startswith(_AFTER_QUOTE)
    following = _NEXT_WORD.match(rest)
    if following is None:
        return True
    word = following[1]
    if word[0].islower():
        return False
    if mark[0] != "." or mark.startswith(".."):
        return True
    return not _is_abbreviated(text[max(start, match.start() - 30) : match.start()], word, bool(following[2]))


def _is_abbreviated(before: str, word: str, dotted: bool) -> bool:
    """Whether the dot after `before` belongs to an abbreviation, an initial or an ordinal, with `word` following."""
    if before[-_LONGEST_ABBREVIATION:].isalpha() and len(before) >= _LONGEST_ABBREVIATION:
        return False
    last = _LAST_WORD.search(before)
    if last is None:
        return False
    token = last[0]
    if _SPACED_ABBREVIATION.search(before) or token.lower() in _ABBREVIATIONS:
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
        return not starter or dotted
    return False


def _append_trimmed(spans: list[tuple[int, int]], text: str, start: int, end: int) -> None:
    part = text[start:end]
    stripped = part.strip()
    if stripped:
        start += len(part) - len(part.lstrip())
        spans.append((start, start + len(stripped)))
