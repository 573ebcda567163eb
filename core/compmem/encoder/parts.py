"""A text read once, with a vector of the whole and one of each of its parts."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compmem.schema import Vectors

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Parts:
    """A text to be encoded as a whole and in parts."""

    label: str
    """What the text is about; read before it, never a part of it."""
    text: str
    spans: Spans
    """The parts: `(start, end)` within the text, in order, not overlapping, none blank."""

    @property
    def head(self) -> str:
        """The label as it is read before the text."""
        return f"{self.label}. " if self.label else ""


@dataclass(frozen=True, slots=True)
class Window:
    """A run of a text's tokens that is read at once, and the parts in it."""

    first: int
    last: int
    parts: tuple[tuple[int, int, int], ...]
    """`(part, first, last)`: which part, and which of the text's tokens are its."""


PARAGRAPH = 120
"""Characters from which a paragraph, or several short ones together, are read by themselves."""


def paragraphs(text: str, spans: Spans) -> list[tuple[int, int]]:
    """Numbers of the parts `(first, last)` that are read together: those of a paragraph, or of several short ones.

    A sentence is meant within its paragraph. Read with the end of the one before, it would have a vector of both.
    """
    groups: list[tuple[int, int]] = []
    first = 0
    for number in range(1, len(spans)):
        held = spans[number - 1][1] - spans[first][0]
        if held >= PARAGRAPH and "\n\n" in text[spans[number - 1][1] : spans[number][0]]:
            groups.append((first, number))
            first = number
    return [*groups, (first, len(spans))] if spans else []


def windows(offsets: Sequence[tuple[int, int]], part: Parts, limit: int) -> list[Window]:
    """Runs of at most `limit` tokens, cut at the ends of paragraphs, and between parts where that is possible.

    A part longer than a window is cut itself and stands in several. `offsets` are the tokens' places in the text.
    """
    opening = {first for first, _ in paragraphs(part.text, part.spans)}
    pieces: list[tuple[int, int, int]] = []
    at = 0
    for number, (_, end) in enumerate(part.spans):
        first = at
        while at < len(offsets) and offsets[at][0] < end:
            at += 1
        pieces += [(number, i, min(i + limit, at)) for i in range(first, at, limit)]
    if at < len(offsets) or not pieces:
        pieces += [(-1, i, min(i + limit, len(offsets))) for i in range(at, max(len(offsets), at + 1), limit)]
    out: list[Window] = []
    begun: set[int] = set()
    for number, first, last in pieces:
        own = ((number, first, last),) if number >= 0 else ()
        opens = number in opening and number not in begun
        begun.add(number)
        if out and last - out[-1].first <= limit and not opens:
            out[-1] = Window(out[-1].first, last, out[-1].parts + own)
        else:
            out.append(Window(first, last, own))
    return out


def parts_as_texts(encode: Callable[[Sequence[str]], Vectors], parts: Sequence[Parts]) -> list[Vectors]:
    """Each text and each of its parts as texts of their own, under the label."""
    texts: list[str] = []
    for part in parts:
        texts += [part.head + part.text, *(part.head + part.text[a:b].strip() for a, b in part.spans)]
    vectors = np.array(encode(texts), dtype=np.float32) if texts else np.zeros((0, 0), dtype=np.float32)
    edges = np.cumsum([0, *(1 + len(p.spans) for p in parts)])
    return [vectors[a:b] for a, b in itertools.pairwise(edges)]
