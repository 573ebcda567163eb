"""A question and a working memory taken apart once, for the first stage, the gate and the extractive reader."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from compmem.schema import Encoder, Vectors
from compmem.terms import STOPWORDS, Mention, content_terms, mentions, possible_names, root, terms, words

LINES = 12
"""Lines of working memory that are compared one by one, the newest."""


LEAST_BLOCKS = 1000
"""A smaller index weighs terms as if it had so many blocks: a word that both of two hold is still no stopword."""


class Lexicon(Protocol):
    """What the store knows of words: how many blocks hold a term, which blocks answer to a name."""

    def __len__(self) -> int:
        """Live blocks."""
        ...

    def document_frequency(self, terms: Sequence[str]) -> Mapping[str, int]:
        """Blocks that hold each term."""
        ...

    def named(self, names: Sequence[str]) -> Mapping[str, Sequence[object]]:
        """Blocks that answer to each name; absent where there is none."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """One line of the working memory as the gate sees it."""

    mentions: Mapping[str, Mention]
    terms: frozenset[str]
    bearing: float
    """Share of the question's weight that the line covers."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """A question and a working memory, taken apart once and compared with many blocks."""

    weights: Mapping[str, float]
    """Inverse document frequency of the question's terms, in [0, 1]."""
    roots: Mapping[str, float]
    """Weight of the roots of the question's words."""
    names: Mapping[str, Mention]
    """Known names in the question."""
    covered: frozenset[str]
    """Question terms that the working memory already covers."""
    lines: tuple[Line, ...]
    question: Vectors
    """`[dim]`."""
    joint: Vectors
    """Question and one memory line each, `[lines, dim]`."""
    shared: Mapping[str, int]
    """How many blocks answer to a name."""
    rarity: Mapping[str, float]
    """Inverse document frequency of the words of names."""
    read: int
    """Lines of working memory so far."""


@dataclass(slots=True)
class Viewer:
    """Makes the views of one question, encoding each new memory line once."""

    question: str
    encoder: Encoder
    lexicon: Lexicon
    _vectors: dict[str, Vectors] = field(default_factory=dict)
    _names: dict[str, Sequence[object]] = field(default_factory=dict)
    _views: dict[str, View] = field(default_factory=dict)

    def view(self, memory: str) -> View:
        """The question and this working memory, taken apart; the first stage, the gate and the reader share it."""
        if memory not in self._views:
            self._views[memory] = self._view(memory)
        return self._views[memory]

    def _view(self, memory: str) -> View:
        lines = [line for line in memory.split("\n") if line.strip()][-LINES:]
        asked = content_terms(self.question)
        frequency = self.lexicon.document_frequency(asked)
        total = len(self.lexicon)
        weights = {t: _idf(frequency[t], total) for t in asked if frequency.get(t)}
        known = self._known([self.question, *lines])
        of_question = {m.name: m for m in mentions(self.question, known)}
        spoken = sorted({w for n in known for w in n.split()})
        stems = {w: (terms(w) or [w])[0] for w in spoken}
        seen = self.lexicon.document_frequency(list(dict.fromkeys(stems.values())))
        roots: dict[str, float] = {}
        for word in words(self.question):
            if word not in STOPWORDS:
                weight = max((weights.get(t, 0.0) for t in terms(word)), default=0.0)
                roots[root(word)] = max(weight, roots.get(root(word), 0.0))
        parts = [self._line(line, known, weights) for line in lines]
        everything = frozenset().union(*(p.terms for p in parts)) if parts else frozenset()
        vectors = self._encode([self.question, *(f"{self.question} {line}" for line in lines)])
        return View(
            weights=weights,
            roots=roots,
            names=of_question,
            covered=frozenset(weights) & everything,
            lines=tuple(parts),
            question=vectors[0],
            joint=vectors[1:],
            shared={n: len(blocks) for n, blocks in known.items()},
            rarity={w: _idf(seen.get(stems[w], 0), total) for w in spoken},
            read=len(lines),
        )

    def _known(self, texts: Sequence[str]) -> Mapping[str, Sequence[object]]:
        """The names of blocks that these texts hold, or may hold; each is looked up once."""
        possible = dict.fromkeys(n for text in texts for n in possible_names(text))
        new = [n for n in possible if n not in self._names]
        found = self.lexicon.named(new)
        self._names.update((n, found.get(n, ())) for n in new)
        return {n: blocks for n in possible if (blocks := self._names[n])}

    def _line(self, line: str, known: Mapping[str, object], weights: Mapping[str, float]) -> Line:
        held = frozenset(terms(line))
        total = sum(weights.values()) or 1.0
        return Line(
            mentions={m.name: m for m in mentions(line, known)},
            terms=held,
            bearing=sum(w for t, w in weights.items() if t in held) / total,
        )

    def _encode(self, texts: list[str]) -> Vectors:
        new = [t for t in dict.fromkeys(texts) if t not in self._vectors]
        if new:
            self._vectors.update(zip(new, self.encoder.encode(new), strict=True))
        return np.stack([self._vectors[t] for t in texts])


def _idf(frequency: int, blocks: int) -> float:
    """Inverse document frequency as a share of a unique term's, so that it means the same in an index of any size."""
    total = max(blocks, LEAST_BLOCKS)
    return math.log1p((total - frequency + 0.5) / (frequency + 0.5)) / math.log1p((total + 0.5) / 0.5)
