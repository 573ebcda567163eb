"""Memory blocks parsed for the gate, once each; a long block is split into windows of the size used in training."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from compmem.schema import Chunk, MemoryBlock, Vectors
from compmem.text.tokenize import (
    STOPWORDS,
    content_terms,
    has_paragraph_break,
    heading_at,
    headings_in,
    name,
    root,
    terms_of,
    words,
)

MAX_WINDOW_WORDS = 200
"""Maximum number of words of a window: about those of a block of 256 tokens, on which the gate was trained."""

PARAGRAPH = 30
"""Words from which a window may end with its paragraph."""


@dataclass(frozen=True, slots=True, eq=False)
class ParsedBlock:
    """A memory block, parsed once and compared with each new query state."""

    vectors: Vectors
    titles: tuple[str, ...]
    """The variants of its title, longest first."""
    title_terms: frozenset[str]
    sentence_terms: tuple[frozenset[str], ...]
    counts: Mapping[str, int]
    roots: frozenset[str]
    text: str
    """The normalised words of its context and text, separated by single spaces, without the title."""
    length: int


def parse_block(block: MemoryBlock) -> ParsedBlock:
    """The parsed block."""
    assert block.vectors is not None, "the dense gate needs dense memory"
    chunk = block.chunk
    beside = words(chunk.context)
    shared = terms_of(beside)
    counts: Counter[str] = Counter(shared)
    per_sentence: list[frozenset[str]] = []
    plain: list[str] = [*beside]
    for sentence in chunk.sentence_texts():
        sentence_words = words(sentence)
        found = terms_of(sentence_words)
        plain += sentence_words
        per_sentence.append(frozenset([*shared, *found]))
        counts.update(found)
    title = name(chunk.title)
    bare = name(chunk.title.split("(")[0])
    return ParsedBlock(
        vectors=block.vectors,
        titles=tuple(dict.fromkeys(t for t in (title, bare) if t)),
        title_terms=frozenset(content_terms(chunk.title)),
        sentence_terms=tuple(per_sentence),
        counts=counts,
        roots=frozenset(map(root, {*plain} - STOPWORDS)),
        text=f" {' '.join(plain)} ",
        length=len(plain),
    )


def parse_windows(block: MemoryBlock) -> tuple[ParsedBlock, ...]:
    """The block as the gate was trained to see it: a long block is split into windows of whole sentences.

    A reader sees the whole block, so a block is relevant if one of its windows is: its gate score is the maximum over
    its windows. Otherwise shares of words and counts would grow with a block's length and lose their meaning.
    """
    chunk = block.chunk
    short = len(chunk.text) <= MAX_WINDOW_WORDS or len(words(chunk.text)) <= MAX_WINDOW_WORDS
    if short and (chunk.title or not headings_in(chunk.text)):
        return (parse_block(block),)
    return tuple(parse_block(window) for window in _windows(block))


def _windows(block: MemoryBlock) -> Iterator[MemoryBlock]:
    """Runs of whole sentences of at most `MAX_WINDOW_WORDS` words, cut at the ends of long enough paragraphs.

    A paragraph under its own heading is its own window, with the heading as its title.
    """
    assert block.vectors is not None, "the dense gate needs dense memory"
    chunk = block.chunk
    first = held = 0
    title = over = chunk.title
    for number, (start, end) in enumerate(chunk.sentences):
        count = len(words(chunk.text[start:end]))
        begins = number == 0 or has_paragraph_break(chunk.text, chunk.sentences[number - 1][1], start)
        heading = heading_at(chunk.text, start) if begins and not chunk.title else ""
        full = held + count > MAX_WINDOW_WORDS or heading or (begins and held >= PARAGRAPH)
        if number > first and full:
            yield _window(chunk, block.vectors, first, number, title)
            first, held = number, 0
        over = heading or (chunk.title if begins else over)
        title = over if number == first else title
        held += count
    yield _window(chunk, block.vectors, first, len(chunk.sentences), title)


def _window(chunk: Chunk, vectors: Vectors, first: int, last: int, title: str) -> MemoryBlock:
    """Some of a block's sentences as a separate block; its whole vector is their mean."""
    spans = chunk.sentences[first:last]
    if not spans:
        return MemoryBlock(chunk=chunk, vectors=vectors)
    start, end = spans[0][0], spans[-1][1]
    own = vectors[1 + first : 1 + last]
    mean = (own * np.array([[b - a] for a, b in spans], dtype=np.float32)).sum(0)
    whole = mean / max(float(np.linalg.norm(mean)), 1e-12)
    moved = tuple((a - start, b - start) for a, b in spans)
    kept = replace(chunk, text=chunk.text[start:end], sentences=moved, title=title)
    return MemoryBlock(chunk=kept, vectors=np.concatenate([whole[None], own]).astype(np.float32))
