"""The text of an answer that quotes sentences, with their titles and headings, and in lines where there were lines."""

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from compmem.readers.outline import Outline, Outlines, heading_text, is_item, is_reply, roots
from compmem.schema import Evidence
from compmem.text.sentences import is_row

_MAX_ID_CHARS: Final = 80
_OPAQUE: Final = re.compile(r"[^a-z]*+\Z|.*[0-9a-f-]{16}", re.IGNORECASE | re.DOTALL)
"""Ids that say nothing to a reader: a number, or one with a hash or UUID."""


class _Quoted(NamedTuple):
    evidence: Evidence
    outline: Outline
    place: int
    section: tuple[str, tuple[str, ...]]
    """The document, and the headings that it stands under."""

    @property
    def code(self) -> tuple[str, int]:
        """The block of code that it is part of; the number 0 is none."""
        return self.evidence.chunk.id, self.outline.code[self.place]

    @property
    def is_line(self) -> bool:
        text = self.evidence.text
        return bool(self.code[1]) or is_row(text) or is_item(text)

    @property
    def text(self) -> str:
        if self.outline.levels[self.place]:
            return heading_text(self.evidence.text)
        return self.evidence.text if self.code[1] else " ".join(self.evidence.text.split())


def quotation(quoted: Sequence[Evidence], outlines: Outlines) -> Iterator[str]:
    """The pieces of a text that quotes these sentences, one for each.

    Before a sentence stand the title of its document, unless the quoted sentences have half of its words, and the
    headings of its section that say more than the sentences quoted of it and the title. Behind a title that several
    quoted documents have stands the id of each. Rows, items of lists and lines of code stand on lines of their own.

    Args:
        quoted: The sentences, in the order in which they are quoted.
        outlines: Makes the outlines of their chunks.
    """
    shown = _without_headings(
        [_Quoted(e, outlines.of(e.chunk), outlines.place(e), (e.chunk.document_id, outlines.path(e))) for e in quoted]
    )
    ids, said = _ids_of_equal_titles(shown), dict[object, set[str]]()
    for one in shown:
        for about in (one.evidence.chunk.document_id, one.section):
            said.setdefault(about, set()).update(roots(one.evidence.text))
    before = None
    for one in shown:
        begins = before is None or before.section != one.section
        label, headed = _label(one, said, ids, begins=begins)
        gap = "" if before is None else _between(before, one, headed=headed)
        yield f"{gap}{label}{_gap(one) if label else ''}{one.text}"
        before = one


def _without_headings(quoted: Sequence[_Quoted]) -> list[_Quoted]:
    """The sentences without the headings of others among them, which are written before those."""
    above = {(one.evidence.chunk.id, n) for one in quoted for n in one.outline.above(one.place)}
    headings = {(one.evidence.chunk.id, one.place) for one in quoted if one.outline.levels[one.place]} & above
    return [one for one in quoted if (one.evidence.chunk.id, one.place) not in headings]


def _ids_of_equal_titles(shown: Sequence[_Quoted]) -> dict[str, str]:
    """For each document with a title that others have too, its id, or the last part of it if that is different."""
    documents = dict[str, set[str]]()
    for one in shown:
        documents.setdefault(one.evidence.chunk.title, set()).add(one.evidence.chunk.document_id)
    found = dict[str, str]()
    for title, ids in documents.items():
        if title and len(ids) > 1 and not any(_OPAQUE.match(one) for one in ids):
            names = {one: one.replace("\\", "/").rpartition("/")[2] for one in ids}
            found |= names if len(set(names.values())) == len(ids) else {one: one[-_MAX_ID_CHARS:] for one in ids}
    return found


def _label(one: _Quoted, said: dict[object, set[str]], ids: dict[str, str], *, begins: bool) -> tuple[str, bool]:
    """What stands before a sentence, and whether a heading is part of it; `begins`: it is the first of its section."""
    chunk, (document, path) = one.evidence.chunk, one.section
    headings = [h for h in path if not _is_said(h, said[one.section], chunk.title)] if begins else []
    if begins and path and is_reply(one.evidence.text) and path[-1] not in headings:
        headings.append(path[-1])
    says = len(chunk.title) > 1 and any(map(str.isalpha, chunk.title))  # not a mere number or letter
    title = roots(chunk.title) if says else set[str]()
    named = 2 * len(title & said[document].union(*map(roots, headings))) >= len(title)
    said[document] |= title
    own_id = ids.pop(document, "")  # written once
    titled = f"{chunk.title} ({own_id})" if own_id else "" if named else chunk.title
    label = " › ".join([*filter(None, [titled]), *headings])
    return label if not label or label.endswith((":", "?", "!")) else f"{label}:", bool(headings)


def _is_said(heading: str, said: set[str], title: str) -> bool:
    own = roots(heading)
    return bool(own) and (own <= said or own == roots(title))


def _gap(one: _Quoted) -> str:
    """What separates a sentence from what stands before it."""
    return "\n" if one.is_line else " "


def _between(before: _Quoted, after: _Quoted, *, headed: bool) -> str:
    if before.code[1] and before.code == after.code:
        between = before.evidence.chunk.text[before.evidence.end : after.evidence.start]
        return "\n" if between.strip() else between
    return "\n" if headed or before.is_line or after.is_line else " "
