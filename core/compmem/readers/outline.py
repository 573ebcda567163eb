"""How the sentences of a chunk hang together: headings, questions, lists, tables, code, records, pronouns."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from compmem.schema import Chunk, Evidence
from compmem.text.line_runs import ATX, RULE, is_code, is_labelled, open_fence
from compmem.text.sentences import is_row
from compmem.text.tokenize import content_terms, root, words

MAX_INTRODUCED_SENTENCES = 3
"""Maximum number of sentences that are quoted with the one that introduces them."""

MAX_LIST_ITEMS = 12
"""Maximum number of items of a list, or rows of a table, that are quoted together."""

MAX_PRECEDING_SENTENCES = 2
"""Maximum number of sentences that are quoted before one with a pronoun."""

_BOLD_LEVEL, _PLAIN_LEVEL, _NUMBERED_LEVEL = 7, 8, 9
"""Levels of headings without `#`; each dot in a number is one level more."""
_MAX_HEADING_CHARS: Final = 80
_MAX_HEADING_WORDS: Final = 12
_SENTENCE_ENDS: Final = tuple(".!?:;,…。！？：；，、")

_PRONOUNS = frozenset("he her his it its she that their these they this those".split())
_PERSONAL = frozenset("he she they".split())
_POINTING = frozenset("this these that those".split())
_PREPOSITIONS = frozenset("after at before by during for from in on to under until with without".split())
_OPENING = 4
"""First words of a sentence in which `he`, `she` or `they` means someone named before."""
_BULLET = re.compile(r"[-*+•–]\s+(?:\[[ xX]\]\s+)?")
_ITEM = re.compile(rf"{_BULLET.pattern}|\(?\d{{1,3}}[.)]\s")
_BOLD = re.compile(r"\*\*[^*]++\*\*(?<![.!:]\*\*)")
_FIELD = re.compile(r"(?:^|; )([^\W\d_][^;:]{0,40}): ")
_NUMBER = re.compile(r"(\d{1,3}(?:\.\d{1,3}){0,4})[.)]?\s++(?=[^\W\d_])")
_EMPHASIS = "*_\"'”»)"
"""What may stand behind the mark at the end of a sentence."""
_REPLY = re.compile(r"(?:\*\*)?(?:A:\s*)?(?:\*\*\s*)?(?:yes|no|ja|nein|oui|non|sí)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Outline:
    """The sentences of a chunk in their order, numbered from 0."""

    texts: tuple[str, ...]
    begins: tuple[bool, ...]
    """Whether a paragraph begins with each sentence."""
    lines: tuple[bool, ...]
    """Whether each sentence is a line of its own, or several."""
    levels: tuple[int, ...]
    """For each sentence, the level of the heading that it is, 1 for the outermost; 0: it is none."""
    heads: tuple[int, ...]
    """For each sentence, the one that introduces it: the first line of its record, else the last question or line with
    a colon in its paragraph, else the last heading above it; -1: none."""
    code: tuple[int, ...]
    """For each sentence, the number of the block of code that it is part of, from 1; 0: none."""
    sections: tuple[str, ...]
    """The headings of the section in which the chunk begins, outermost first."""
    continues: bool
    """The chunk begins inside a table, whose head is its last heading."""

    @classmethod
    def of(cls, chunk: Chunk) -> "Outline":
        """The outline of a chunk; one without sentences is a single one."""
        texts = tuple(chunk.sentence_texts())
        breaks = [chunk.text[a:b].count("\n") for (_, a), (b, _) in pairwise(chunk.spans)]
        begins = (True, *(count > 1 for count in breaks))
        lines = tuple(before > 0 and after > 0 for before, after in pairwise([1, *breaks, 1]))
        code = tuple(_blocks_of_code(texts))
        levels = _levels(texts, begins, code)
        continues = bool(chunk.headings) and is_row(chunk.headings[-1])
        sections = chunk.headings[:-1] if continues else chunk.headings
        return cls(texts, begins, lines, levels, tuple(_heads(texts, begins, levels)), code, sections, continues)

    def introduces(self, place: int) -> bool:
        """Whether a sentence only says what the next are about."""
        return self.levels[place] > 0 or introduces(self.texts[place])

    def above(self, place: int) -> Iterator[int]:
        """What introduces a sentence, from inside out: the line, then the headings."""
        while (place := self.heads[place]) >= 0:
            yield place

    def path(self, place: int) -> tuple[str, ...]:
        """The headings above a sentence, or up to a heading, outermost first and without their marks."""
        own = [n for n in (place, *self.above(place)) if self.levels[n]][::-1]
        outer = self._sections_above(own[0]) if own else self.sections
        return (*outer, *(heading_text(self.texts[n]) for n in own))

    def _sections_above(self, heading: int) -> tuple[str, ...]:
        """The sections that an outermost heading of the chunk is part of, as far as they are known."""
        if self.levels[heading] in (_BOLD_LEVEL, _PLAIN_LEVEL):
            return self.sections
        first = next(n for n, level in enumerate(self.levels) if level)
        name, names = _unnumbered(heading_text(self.texts[first])), list(map(_unnumbered, self.sections))
        siblings = self.levels[heading] == self.levels[first] and name in names
        return self.sections[: names.index(name)] if siblings else ()

    def introduced(self, place: int) -> Iterator[int]:
        """The sentences that this one introduces: some of a paragraph, or a list or table of up to `MAX_LIST_ITEMS`."""
        if not self.introduces(place):
            return
        said = False
        for after in range(place + 1, len(self.texts)):
            if is_rule(self.texts[after]):
                continue
            item = is_item(self.texts[after]) or is_row(self.texts[after]) or self.code[after]
            ends = self.introduces(after)
            if said and (ends or (self.begins[after] and not item)):
                return
            if after - place > (MAX_LIST_ITEMS if item else MAX_INTRODUCED_SENTENCES):
                return
            said = said or not ends
            yield after

    def named_before(self, place: int) -> Iterator[int]:
        """The sentences before one with a pronoun, back to one without, in its paragraph."""
        for at in range(place, max(place - MAX_PRECEDING_SENTENCES, 0), -1):
            if self.begins[at] or not is_of_someone(self.texts[at]):
                return
            yield at - 1

    def beside(self, place: int) -> Iterator[int]:
        """The sentence before one of running text and the one after it, in its paragraph."""
        if self._is_text(place):
            if place and not self.begins[place] and self._is_text(place - 1):
                yield place - 1
            if place + 1 < len(self.texts) and not self.begins[place + 1] and self._is_text(place + 1):
                yield place + 1

    def _is_text(self, place: int) -> bool:
        """Whether a sentence is running text: no row, item, rule, code or labelled line, and it introduces nothing."""
        text = self.texts[place]
        if self.lines[place] and (is_labelled(text) or is_code(text)):
            return False
        return not (self.introduces(place) or self.code[place] or is_row(text) or is_item(text) or is_rule(text))

    def record(self, place: int) -> int:
        """The first line of the paragraph that a line with a label stands in, if that has one too; else the line."""
        first = place
        while first and is_labelled(self.texts[place]) and not self.begins[first]:
            first -= 1
        return first if is_labelled(self.texts[first]) and not introduces(self.texts[first]) else place

    def table(self, place: int) -> range:
        """The rows of the table that this one is a row of; empty if it is none."""
        if not is_row(self.texts[place]):
            return range(0)
        first = last = place
        while first and is_row(self.texts[first - 1]):
            first -= 1
        while last + 1 < len(self.texts) and is_row(self.texts[last + 1]):
            last += 1
        return range(first, last + 1)

    def block_of_code(self, place: int) -> list[int]:
        """The sentences of the block of code that this one is part of; empty if it is in none, or the block is long."""
        if not self.code[place]:
            return []
        near = range(max(0, place - MAX_LIST_ITEMS), min(len(self.code), place + MAX_LIST_ITEMS + 1))
        block = [n for n in near if self.code[n] == self.code[place]]
        return block if len(block) <= MAX_LIST_ITEMS else []


class Outlines:
    """The outlines of the chunks of one answer, each made once."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[Outline, dict[int, int]]] = {}
        self._paths: dict[tuple[str, int], tuple[str, ...]] = {}
        self._path_roots: dict[tuple[str, ...], set[str]] = {}

    def of(self, chunk: Chunk) -> Outline:
        """The outline of a chunk."""
        return self._of(chunk)[0]

    def place(self, evidence: Evidence) -> int:
        """The number of a sentence in its chunk."""
        return self._of(evidence.chunk)[1].get(evidence.start, 0)

    def is_heading(self, evidence: Evidence) -> bool:
        """Whether a sentence is a heading."""
        outline, places = self._of(evidence.chunk)
        return outline.levels[places.get(evidence.start, 0)] > 0

    def path(self, evidence: Evidence) -> tuple[str, ...]:
        """The headings above a sentence; see `Outline.path`."""
        outline, place = self.of(evidence.chunk), self.place(evidence)
        heading = next((n for n in (place, *outline.above(place)) if outline.levels[n]), -1)
        key = evidence.chunk.id, heading
        if key not in self._paths:
            self._paths[key] = outline.path(place)
        return self._paths[key]

    def _of(self, chunk: Chunk) -> tuple[Outline, dict[int, int]]:
        if chunk.id not in self._made:
            places = {start: n for n, (start, _) in enumerate(chunk.spans)}
            self._made[chunk.id] = Outline.of(chunk), places
        return self._made[chunk.id]

    def roots(self, evidence: Evidence) -> set[str]:
        """The roots of the words of a sentence and of the headings above it."""
        path = self.path(evidence)
        if path not in self._path_roots:
            self._path_roots[path] = set[str]().union(*map(roots, path))
        return roots(evidence.text) | self._path_roots[path]


def _blocks_of_code(texts: Sequence[str]) -> Iterator[int]:
    """For each sentence, the number of the block between fences that it is part of; 0: none."""
    number, fence = 0, ""
    for text in texts:
        before = fence
        for line in text.split("\n"):
            fence = open_fence(line, fence)
        number += fence != "" and not before
        yield number if before or fence else 0


def _levels(texts: Sequence[str], begins: Sequence[bool], code: Sequence[int]) -> tuple[int, ...]:
    levels = [0] * len(texts)
    for place in reversed(range(len(texts))):
        levels[place] = 0 if code[place] else _level(texts, begins, levels, place)
    return tuple(levels)


def _level(texts: Sequence[str], begins: Sequence[bool], levels: Sequence[int], place: int) -> int:
    """The level of a heading, given those of the sentences after it; 0: it is none.

    A heading without marks is one line that is a paragraph of its own and ends without a mark, above a paragraph of
    text or a heading of a deeper level.
    """
    text, after = texts[place], place + 1
    if match := ATX.match(text):
        return len(match[1])
    if _BOLD.fullmatch(text):
        return _BOLD_LEVEL
    if after == len(texts) or not begins[place] or not _may_be_heading(text):
        return 0
    if not begins[after]:
        return (1 if texts[after][0] == "=" else 2) if is_rule(texts[after]) else 0
    number = _NUMBER.match(text)
    level = _NUMBERED_LEVEL + number[1].count(".") if number else _PLAIN_LEVEL
    return level if levels[after] > level or not (levels[after] or _may_be_heading(texts[after])) else 0


def _may_be_heading(text: str) -> bool:
    """Whether a paragraph of this text may be a heading: short, with a capital or digit first and no mark last."""
    short = len(text) <= _MAX_HEADING_CHARS and len(text.split()) <= _MAX_HEADING_WORDS and "\n" not in text
    if not short or not text[0].isalnum() or text[0].islower() or text.endswith(_SENTENCE_ENDS):
        return False
    return not (is_row(text) or is_labelled(text))


def _heads(texts: Sequence[str], begins: Sequence[bool], levels: Sequence[int]) -> Iterator[int]:
    """For each sentence, the one that introduces it."""
    repeated = _repeated_labels(texts, begins)
    path, lead, record, said = list[int](), -1, -1, False
    for place, text in enumerate(texts):
        if begins[place]:
            lead = -1 if said else lead
            record = place if is_labelled(text) and not introduces(text) else -1
        while levels[place] and path and levels[path[-1]] >= levels[place]:
            path.pop()
        heading = path[-1] if path else -1
        if levels[place]:
            yield heading
            path.append(place)
            lead = -1
        elif is_rule(text):
            yield heading
        elif introduces(text):
            yield heading
            lead, said = place, False
        else:
            of_record = 0 <= record < place and _label(text) in repeated
            yield record if of_record else heading if lead < 0 else lead
            said = True


def _repeated_labels(texts: Sequence[str], begins: Sequence[bool]) -> set[str]:
    """The labels that stand in several paragraphs, as those of records do."""
    paragraph, found = 0, set[tuple[str, int]]()
    for text, first in zip(texts, begins, strict=True):
        paragraph += first
        if label := _label(text):
            found.add((label, paragraph))
    return {label for label, count in Counter(label for label, _ in found).items() if count > 1}


def _label(text: str) -> str:
    return text.partition(":")[0] if is_labelled(text) else ""


def _unnumbered(heading: str) -> str:
    return _NUMBER.sub("", heading, count=1)


def roots(text: str) -> set[str]:
    """The roots of the words that say something."""
    return {root(t) for t in content_terms(text)}


def is_fence(text: str) -> bool:
    """Whether a sentence is the line that begins or ends a block of code."""
    return open_fence(text) != ""


def is_rule(text: str) -> bool:
    """Whether a sentence is a line under or between others."""
    return RULE.match(text) is not None


def heading_text(text: str) -> str:
    """A heading without the marks that make it one."""
    return text.strip("#* \t")


def introduces(text: str) -> bool:
    """Whether a sentence only says what the next are about: a question, a line with a colon or an open bracket."""
    return is_question(text) or text.rstrip(_EMPHASIS).endswith((":", "{", "["))


def is_question(text: str) -> bool:
    """Whether a sentence is a question."""
    return text.rstrip(_EMPHASIS).endswith("?")


def is_item(text: str) -> bool:
    """Whether a sentence is an item of a list, or a line with a label."""
    return _ITEM.match(text) is not None or (is_labelled(text) and not text.endswith((".", "!", "?", ":")))


def is_labelled_item(text: str) -> bool:
    """Whether a sentence is a line with a label, or such an item of a list."""
    return is_labelled(_BULLET.sub("", text, count=1) if _BULLET.match(text) else text)


def field_names(text: str) -> list[str]:
    """The names of the fields of a record in one line, such as "Name: Ann; Office: Leeds"."""
    return [found[1] for found in _FIELD.finditer(text)] if _FIELD.match(text) else []


def field_values(text: str) -> list[str]:
    """The values of the fields of a record."""
    return _FIELD.split(text)[2::2]


def is_reply(text: str) -> bool:
    """Whether a sentence begins with yes or no, so that it says nothing without its question."""
    return _REPLY.match(text) is not None


def is_of_someone(text: str) -> bool:
    """Whether a sentence is about someone or something that was named before it."""
    opening = words(text[:80])[:_OPENING]
    if opening[:1] and opening[0] in _PREPOSITIONS and not _POINTING.isdisjoint(opening[1:2]):
        return True
    return not (_PRONOUNS.isdisjoint(opening[:1]) and _PERSONAL.isdisjoint(opening))
