"""A text that is read once, with a vector of the whole and one of each span."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from compmem.schema import Vectors
from compmem.text.tokenize import has_paragraph_break

Spans = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class TextWithSpans:
    """A text to encode as a whole, and spans of it to encode as well, such as its sentences."""

    label: str
    """Title or context of the text; read before it, but not in a span."""
    text: str
    spans: Spans
    """`(start, end)` within the text, in order, not overlapping, none blank."""

    @property
    def head(self) -> str:
        """The label in the form in which it is put before the text."""
        return f"{self.label}. " if self.label else ""


@dataclass(frozen=True, slots=True)
class Window:
    """A run of a text's tokens that is read at once, and the spans in it."""

    first: int
    last: int
    spans: tuple[tuple[int, int, int], ...]
    """`(number, first, last)`: the number of a span, and the range of its tokens in the text."""


PARAGRAPH = 120
"""Paragraphs of at least this many characters are read separately; shorter ones are joined up to this length."""


def paragraphs(text: str, spans: Spans) -> list[tuple[int, int]]:
    """Numbers of the spans `(first, last)` that are read together: those of one paragraph, or of several short ones.

    A sentence belongs to its paragraph. Read with the end of the previous paragraph, its vector would mix both.
    """
    groups: list[tuple[int, int]] = []
    first = 0
    for number in range(1, len(spans)):
        held = spans[number - 1][1] - spans[first][0]
        if held >= PARAGRAPH and has_paragraph_break(text, spans[number - 1][1], spans[number][0]):
            groups.append((first, number))
            first = number
    return [*groups, (first, len(spans))] if spans else []


def windows(offsets: Sequence[tuple[int, int]], text: TextWithSpans, limit: int) -> list[Window]:
    """Runs of at most `limit` tokens, cut at the ends of paragraphs, and between spans if possible.

    A span longer than a window is cut and is in several windows. `offsets` are character spans of the tokens in the
    text.
    """
    opening = {first for first, _ in paragraphs(text.text, text.spans)}
    pieces: list[tuple[int, int, int]] = []
    at = 0
    for number, (_, end) in enumerate(text.spans):
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
            out[-1] = Window(out[-1].first, last, out[-1].spans + own)
        else:
            out.append(Window(first, last, own))
    return out


def encode_spans_separately(
    encode: Callable[[Sequence[str]], Vectors], texts: Sequence[TextWithSpans]
) -> list[Vectors]:
    """Each text and each of its spans as separate texts, with the label in front."""
    plain: list[str] = []
    for text in texts:
        plain += [text.head + text.text, *(text.head + text.text[a:b].strip() for a, b in text.spans)]
    vectors = np.array(encode(plain), dtype=np.float32) if plain else np.zeros((0, 0), dtype=np.float32)
    edges = np.cumsum([0, *(1 + len(text.spans) for text in texts)])
    return [vectors[a:b] for a, b in itertools.pairwise(edges)]
