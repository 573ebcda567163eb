"""Splits text into chunks that cover it exactly.

Chunks end where it matters least to a reader: at headings, then paragraphs, then sentences, then words. No model is
needed; the given counter counts tokens.
"""

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Protocol, TypeVar

from compmem.ingest.headings import LineReader, find_heading
from compmem.schema import Chunk, Document
from compmem.text.line_runs import TEXT, open_fence
from compmem.text.sentences import is_row, sentence_spans, sentences
from compmem.text.truncation import CHARS_PER_TOKEN

logger = logging.getLogger(__name__)

TokenCounter = Callable[[Sequence[str]], list[int]]
"""Token counts of many texts at once, each including the tokens that the tokenizer adds to every text."""

_MAX_HEADINGS = 8
"""A chunk keeps only this many headings, the innermost ones: a deep path would be stored with each chunk below it."""
_MAX_TABLE_HEAD_CHARS = 200
"""Maximum number of characters of a table's head that are kept."""
_WINDOW_CHARS = 1 << 16
"""Characters that are processed together; memory beyond the text itself is limited to them."""

_BLANKS = re.compile(r"\s*+")
_TABLE_HEAD = re.compile(r"\||[^\d{\[<]\D*$")
"""The first row of a Markdown table; of other rows, one without digits that is no JSON or XML."""
_BOUNDARY_CHARS = "、，；："


_Splitter = Callable[[str, int, int], Iterator[tuple[int, int]]]
"""Splits a span of a text."""


@dataclass(frozen=True, slots=True)
class _Unit:
    """A run of the text that is not split further: a block, a sentence or a piece of one."""

    start: int
    end: int
    level: int = 0
    heading: str = ""
    tokens: int = 0
    starts_paragraph: bool = False
    """It begins a paragraph that is split."""
    table: str = ""
    """The head of the table that it continues."""


def split(document: Document, *, chunk_tokens: int, count: TokenCounter) -> Iterator[Chunk]:
    """The chunks of a document, in order; together they are its text. They are produced lazily.

    A paragraph stays in one chunk if it fits. A heading, or a paragraph that must be split, begins a new chunk if the
    current one is at least half full. So a chunk has one topic, and short sections do not become chunks of one line.
    A chunk that begins inside a table has the table's head as its last heading.
    Besides the text, only a window of it is in memory.

    Args:
        document: Text to split, or chunks to keep unchanged.
        chunk_tokens: Maximum number of tokens in a chunk, as `count` counts them.
        count: The token counter; called with batches and never twice with the same piece.

    Returns:
        No chunks if the text is blank. A chunk of blanks alone occurs only inside a longer run of blanks.
    """
    if not TEXT.search(document.text):
        return
    counter = _Counter(document.text, count)
    if document.chunks is not None:
        yield from _given_chunks(document, chunk_tokens, counter)
        return
    limit = chunk_tokens - counter.overhead
    path: list[tuple[int, str]] = []
    groups = _within_limit(_pack(_units(limit, counter), limit), limit, counter)
    for ordinal, group in enumerate(groups):
        start, end = group[0].start, group[-1].end
        text = document.text[start:end]
        yield Chunk(
            text=text,
            document_id=document.id,
            ordinal=ordinal,
            start=start,
            title=document.title,
            headings=_headings(group, path),
            context=document.context,
            sentences=tuple(sentences(text)),
            metadata=document.metadata,
            source=document.source or document.id,
        )


def has_own_labels(document: Document) -> bool:
    """Whether a chunk of a document has another context than it, or a heading that is none in its text."""
    chunks = [chunk for chunk in document.chunks or () if isinstance(chunk, Chunk)]
    if any(chunk.context != document.context for chunk in chunks):
        return True
    own = {heading for chunk in chunks for heading in chunk.headings}
    if own:
        own -= {unit.heading for unit in _blocks(document.text)}
    if own:  # heads of tables
        lines = {line.strip()[:_MAX_TABLE_HEAD_CHARS].strip() for line in document.text.split("\n")}
        own -= {h for h in own if is_row(h) and h in lines}
    return bool(own)


class _Counter:
    """Counts spans of one text in batches, without the tokens that the tokenizer adds to every text."""

    def __init__(self, text: str, count: TokenCounter) -> None:
        self.text = text
        self._count = count
        self.overhead = count([""])[0]

    def __call__(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens of each span, minus `overhead`."""
        texts = [self.text[start:end] for start, end in spans]
        return [n - self.overhead for n in self._count(texts)] if texts else []


class _Span(Protocol):
    """A part of the text."""

    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...


_S = TypeVar("_S", bound=_Span)


def _windows(spans: Iterable[_S]) -> Iterator[list[_S]]:
    """The spans in lists, each of at most one window of characters, or of one span."""
    window: list[_S] = []
    for span in spans:
        if window and span.end - window[0].start > _WINDOW_CHARS:
            yield window
            window = []
        window.append(span)
    if window:
        yield window


def _given_chunks(document: Document, chunk_tokens: int, counter: _Counter) -> Iterator[Chunk]:
    """The chunks given with the document, with missing fields filled in."""
    large = 0
    first = ""
    for window in _windows(_complete_chunks(document)):
        counts = counter([(c.start, c.end) for c in window])
        found = [c.id for c, n in zip(window, counts, strict=True) if n + counter.overhead > chunk_tokens]
        large, first = large + len(found), first or next(iter(found), "")
        yield from window
    if large:
        logger.info(
            "document %r: %d given chunk(s) have more than chunk_tokens=%d tokens, the first is %r; kept as given",
            document.id, large, chunk_tokens, first,
        )  # fmt: skip


def _complete_chunks(document: Document) -> Iterator[Chunk]:
    start = ordinal = 0
    for item in document.chunks or ():
        chunk = Chunk(text=item) if isinstance(item, str) else item
        if not chunk.text:
            continue
        yield replace(
            chunk,
            document_id=document.id,
            ordinal=ordinal,
            start=start,
            title=document.title or chunk.title,
            context=document.context or chunk.context,
            sentences=_check_spans(chunk) or tuple(sentences(chunk.text)),
            metadata={**document.metadata, **chunk.metadata},
            source=document.source or document.id,
        )
        start, ordinal = start + len(chunk.text), ordinal + 1


def _check_spans(chunk: Chunk) -> tuple[tuple[int, int], ...]:
    at = 0
    for start, end in chunk.sentences:
        if not at <= start < end <= len(chunk.text):
            raise ValueError(f"sentence span {(start, end)!r} is out of order or outside a chunk of {len(chunk.text)}")
        at = end
    return chunk.sentences


def _headings(group: Sequence[_Unit], path: list[tuple[int, str]]) -> tuple[str, ...]:
    """The innermost headings at the start of a chunk's own text; `path` is updated to the chunk's end."""
    found: tuple[str, ...] | None = None
    for unit in group:
        if unit.level:
            while path and path[-1][0] >= unit.level:
                path.pop()
            path.append((unit.level, unit.heading))
        elif found is None:
            found = tuple(heading for _, heading in path[-_MAX_HEADINGS:])
    headings = tuple(heading for _, heading in path[-_MAX_HEADINGS:]) if found is None else found
    return (*headings, group[0].table) if group[0].table else headings


def _units(limit: int, counter: _Counter) -> Iterator[_Unit]:
    """The text as units of at most `limit` tokens each, in order: blocks, and the parts of larger blocks."""
    return _split_units(_blocks(counter.text), (_into_sentences, _split_into_pieces(limit)), limit, counter)


def _split_units(
    units: Iterable[_Unit], breakers: Sequence[_Splitter], limit: int, counter: _Counter
) -> Iterator[_Unit]:
    """Units of at most `limit` tokens, in order, one window at a time; a longer unit is split when it is read."""
    for window in _windows(units):
        if breakers and window[0].end - window[0].start > _WINDOW_CHARS:
            parts = _split_unit(window[0], breakers[0], counter.text)
            yield from _split_units(parts, breakers[1:], limit, counter)
        else:
            yield from _split_window(window, breakers, limit, counter)


def _split_window(level: list[_Unit], breakers: Sequence[_Splitter], limit: int, counter: _Counter) -> list[_Unit]:
    small: list[_Unit] = []
    for breaker in breakers:
        large = _separate_large(level, limit, counter, small)
        level = [part for unit in large for part in _split_unit(unit, breaker, counter.text)]
    while level:
        large = _separate_large(level, limit, counter, small)
        level = []
        for unit in large:
            middle = _word_boundary(counter.text, unit.start, unit.end, max(1, (unit.end - unit.start) // 2))
            if middle == unit.end:
                small.append(unit)
            else:
                whole = replace(unit, starts_paragraph=False)
                level += [replace(whole, end=middle), replace(whole, start=middle)]
    return sorted(small, key=lambda unit: unit.start)


def _split_unit(unit: _Unit, breaker: _Splitter, text: str) -> Iterator[_Unit]:
    """The parts of a unit; the first one may begin a paragraph, and rows after the first one of a table continue it."""
    head: str | None = None
    for a, b in breaker(text, unit.start, unit.end):
        opens, table = a == unit.start and (unit.starts_paragraph or breaker is _into_sentences), unit.table
        if breaker is _into_sentences:
            row = text[a : min(b, a + _MAX_TABLE_HEAD_CHARS)].strip()
            if not is_row(row):
                table, head = "", None
            elif head is None:
                table, head = "", row if _TABLE_HEAD.match(row) else ""
            else:
                table = head
        yield _Unit(a, b, unit.level, unit.heading, starts_paragraph=opens, table=table)


def _separate_large(units: Sequence[_Unit], limit: int, counter: _Counter, small: list[_Unit]) -> list[_Unit]:
    """Units larger than the limit; the others are counted and added to `small`."""
    most = limit * CHARS_PER_TOKEN
    large = [u for u in units if u.end - u.start > most]
    rest = [u for u in units if u.end - u.start <= most]
    for unit, tokens in zip(rest, counter([(u.start, u.end) for u in rest]), strict=True):
        if tokens <= limit:
            small.append(replace(unit, tokens=tokens))
        else:
            large.append(unit)
    return large


def _into_sentences(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Spans that cover a block, each a sentence with the blanks after it."""
    at = start
    for first, _ in islice(sentence_spans(text, start, end), 1, None):
        yield at, first
        at = first
    yield at, end


def _split_into_pieces(limit: int) -> _Splitter:
    """A splitter into pieces of at most `limit` characters, which rarely have more tokens than that."""

    def breaker(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
        while start < end:
            middle = _word_boundary(text, start, end, limit)
            yield start, middle
            start = middle

    return breaker


def _word_boundary(text: str, start: int, end: int, size: int) -> int:
    """The last word boundary within `size` characters of `start`; that position itself if there is none."""
    if end - start <= size:
        return end if size > 1 or end - start == 1 else start + 1
    borders = (at for at in range(start + size, start, -1) if text[at - 1].isspace() or text[at - 1] in _BOUNDARY_CHARS)
    return next(borders, start + size)


def _pack(units: Iterable[_Unit], limit: int) -> Iterator[list[_Unit]]:
    """Units grouped greedily; no group ends with a heading that fits into the next."""
    group: list[_Unit] = []
    tokens, most = 0, limit * CHARS_PER_TOKEN
    for unit in units:
        full = bool(group) and (tokens + unit.tokens > limit or unit.end - group[0].start > most)
        turn = (unit.level > 0 or unit.starts_paragraph) and tokens * 2 >= limit and not all(u.level for u in group)
        if full or turn:
            body = len(group)
            while body and group[body - 1].level:
                body -= 1
            next_group = [*group[body:], unit]
            if not body or sum(u.tokens for u in next_group) > limit or unit.end - next_group[0].start > most:
                body = len(group)
            yield group[:body]
            group = group[body:]
            tokens = sum(u.tokens for u in group)
        group.append(unit)
        tokens += unit.tokens
    yield group


@dataclass(frozen=True, slots=True)
class _Group:
    """Units that may form a chunk."""

    units: list[_Unit]

    @property
    def start(self) -> int:
        return self.units[0].start

    @property
    def end(self) -> int:
        return self.units[-1].end

    def halves(self) -> list["_Group"]:
        middle = len(self.units) // 2
        return [_Group(self.units[:middle]), _Group(self.units[middle:])]


def _within_limit(groups: Iterable[list[_Unit]], limit: int, counter: _Counter) -> Iterator[list[_Unit]]:
    """The groups, halved if the whole has more tokens than the sum of its parts."""
    for window in _windows(map(_Group, groups)):
        done: list[_Group] = []
        level = window
        while level:
            done += [g for g in level if len(g.units) == 1]
            level = [g for g in level if len(g.units) > 1]
            counts = counter([(g.start, g.end) for g in level])
            done += [g for g, n in zip(level, counts, strict=True) if n <= limit]
            level = [half for g, n in zip(level, counts, strict=True) if n > limit for half in g.halves()]
        yield from (group.units for group in sorted(done, key=lambda group: group.start))


def _blocks(text: str) -> Iterator[_Unit]:
    """Paragraphs and headings, each with the blank lines after it."""
    styles: dict[tuple[str, bool], int] = {}
    lines = LineReader(text)
    fence = ""
    start = 0
    blank = True
    while span := lines.span():
        line = lines.line()
        before, fence = fence, open_fence(line, fence)
        found = None if before or fence else find_heading(lines, line, blank, styles)
        if (found or (line and blank)) and TEXT.search(text, start, span[0]):
            yield _Unit(start, span[0])
            start = span[0]
        if found:
            level, title, count = found
            lines.skip(count)
            while (span := lines.span()) and _BLANKS.fullmatch(text, *span):
                lines.skip(1)
            at = span[0] if span else len(text)
            yield _Unit(start, at, level, title)
            start, blank = at, True
            continue
        blank = not line and bool(_BLANKS.fullmatch(text, *span))
        lines.skip(1)
    if start < len(text):
        yield _Unit(start, len(text))
