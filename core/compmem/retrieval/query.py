"""A question and a working memory, analysed once for the first stage, the gate and the extractive reader."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compmem.schema import Encoder, Vectors
from compmem.store.lexical import LexicalIndex
from compmem.text.question_parts import asking
from compmem.text.tokenize import (
    STOPWORDS,
    Mention,
    capitalised_names,
    content_terms,
    in_english,
    mentions,
    name,
    possible_names,
    root,
    terms,
    words,
)

LINES = 12
"""The newest lines of working memory, which are compared one by one."""


MIN_BLOCKS = 1000
"""Minimum number of blocks that term weights assume: in two blocks, even a word in both may not be a stopword."""


@dataclass(frozen=True, slots=True, eq=False)
class MemoryLine:
    """One line of the working memory for the gate."""

    mentions: Mapping[str, Mention]
    terms: frozenset[str]
    coverage: float
    """Share of the question's weight that the line covers."""
    capitalised: Mapping[str, Mention]
    """Runs of capitalised words that are not in the question, known or not."""
    fresh: Mapping[str, float]
    """Inverse document frequency of the line's terms that are not in the question."""
    capitals: Mapping[str, float]
    """Those of these terms that are capitalised."""


@dataclass(frozen=True, slots=True, eq=False)
class QueryState:
    """A question and a working memory, analysed once and compared with many blocks."""

    weights: Mapping[str, float]
    """Inverse document frequency of the question's terms, in [0, 1]."""
    roots: Mapping[str, float]
    """Weight of the stems of the question's words."""
    names: Mapping[str, Mention]
    """Known names in the question."""
    capitalised: Mapping[str, Mention]
    """Runs of capitalised words in the question, known or not."""
    covered: frozenset[str]
    """Question terms that the working memory already covers."""
    lines: tuple[MemoryLine, ...]
    question: Vectors
    """`[dim]`."""
    joint: Vectors
    """Question and one memory line each, `[lines, dim]`."""
    known: Mapping[str, Sequence[tuple[int, object]]]
    """The first blocks with each name of the question or the memory that any block has."""
    rarity: Mapping[str, float]
    """Inverse document frequency of the words of names."""
    unknown: Sequence[str]
    """Words of what the question asks that no block contains; none if it is not in English."""


@dataclass(slots=True)
class QueryAnalyzer:
    """Analyses one question with each working memory, and encodes each new memory line once."""

    question: str
    encoder: Encoder
    lexical_index: LexicalIndex
    _vectors: dict[str, Vectors] = field(default_factory=dict)
    _names: dict[str, Sequence[tuple[int, object]]] = field(default_factory=dict)
    _states: dict[str, QueryState] = field(default_factory=dict)
    _capitalised: dict[str, dict[str, Mention]] = field(default_factory=dict)

    @property
    def question_terms(self) -> list[str]:
        """The distinct terms of the question that are no stopwords; a name in code counts once, without its parts."""
        return content_terms(self.question, code_parts=False)

    def analyze(self, memory: str) -> QueryState:
        """The analysed question and working memory, shared by the first stage, the gate and the reader."""
        if memory not in self._states:
            self._states[memory] = self._state(memory)
        return self._states[memory]

    def renew(self) -> None:
        """Drops cached lookups after blocks were added to the lexical index; vectors stay cached."""
        self._states.clear()
        self._names.clear()

    def rarity(self, word: str) -> float:
        """Inverse document frequency of a word's rarest term, in [0, 1]."""
        found = terms(word)
        frequency = self.lexical_index.document_frequency(found)
        return max((_idf(frequency.get(t, 0), len(self.lexical_index)) for t in found), default=0.0)

    def _state(self, memory: str) -> QueryState:
        lines = [line for line in memory.split("\n") if line.strip()][-LINES:]
        question_terms = self.question_terms
        own_terms = [(line, content_terms(line)) for line in lines]
        possible = list(dict.fromkeys(n for text in (self.question, *lines) for n in possible_names(text)))
        new = [n for n in possible if n not in self._names]
        self.lexical_index.prepare(
            new, list(dict.fromkeys([*question_terms, *(t for _, own in own_terms for t in own)]))
        )
        known = self._known_names(possible, new)
        capitalised = self._capitalised_names(self.question)
        stems = _stems([*known, *capitalised, *(n for line in lines for n in self._capitalised_names(line))])
        in_question = frozenset(question_terms)
        content = [(line, [t for t in own if t not in in_question]) for line, own in own_terms]
        everything = [*question_terms, *stems.values(), *(t for _, own in content for t in own)]
        frequency = self.lexical_index.document_frequency(list(dict.fromkeys(everything)))  # one call for all
        total = len(self.lexical_index)
        weights = {t: _idf(frequency[t], total) for t in question_terms if frequency.get(t)}
        parts = self._lines(content, known, weights, frequency)
        held = frozenset().union(*(p.terms for p in parts)) if parts else frozenset()
        vectors = self._encode([self.question, *(f"{self.question} {line}" for line in lines)])
        return QueryState(
            weights=weights,
            roots=self._roots(weights),
            names={m.name: m for m in mentions(self.question, known)},
            capitalised=capitalised,
            covered=frozenset(weights) & held,
            lines=parts,
            question=vectors[0],
            joint=vectors[1:],
            known=known,
            rarity={word: _idf(frequency.get(stem, 0), total) for word, stem in stems.items()},
            unknown=self._unknown(frequency) if in_english(self.question) else [],
        )

    def _unknown(self, frequency: Mapping[str, int]) -> list[str]:
        asked = dict.fromkeys(words(asking(self.question), code_parts=False))
        question_words = [word for word in asked if word not in STOPWORDS]
        return [word for word in question_words if not any(frequency.get(term) for term in terms(word))]

    def _roots(self, weights: Mapping[str, float]) -> dict[str, float]:
        roots: dict[str, float] = {}
        for word in words(self.question, code_parts=False):
            if word not in STOPWORDS:
                weight = max((weights.get(t, 0.0) for t in terms(word)), default=0.0)
                roots[root(word)] = max(weight, roots.get(root(word), 0.0))
        return roots

    def _known_names(self, possible: Sequence[str], new: Sequence[str]) -> Mapping[str, Sequence[tuple[int, object]]]:
        """Those of the possible names that blocks have; the new ones are looked up."""
        found = self.lexical_index.blocks_by_name(new)
        self._names.update((n, found.get(n, ())) for n in new)
        return {n: blocks for n in possible if (blocks := self._names[n])}

    def _capitalised_names(self, text: str) -> dict[str, Mention]:
        if text not in self._capitalised:
            self._capitalised[text] = {m.name: m for m in capitalised_names(text)}
        return self._capitalised[text]

    def _lines(
        self,
        content: Sequence[tuple[str, Sequence[str]]],
        known: Mapping[str, object],
        weights: Mapping[str, float],
        frequency: Mapping[str, int],
    ) -> tuple[MemoryLine, ...]:
        """The lines, given the content terms of each that are not in the question."""
        spaced = f" {name(self.question)} "
        total = sum(weights.values()) or 1.0
        out = []
        for line, fresh_terms in content:
            held = frozenset(terms(line))
            capitalised = {n: m for n, m in self._capitalised_names(line).items() if f" {n} " not in spaced}
            fresh = {t: _idf(frequency.get(t, 0), len(self.lexical_index)) for t in fresh_terms}
            out.append(
                MemoryLine(
                    mentions={m.name: m for m in mentions(line, known)},
                    terms=held,
                    coverage=sum(w for t, w in weights.items() if t in held) / total,
                    capitalised=capitalised,
                    fresh=fresh,
                    capitals={t: fresh[t] for n in capitalised for t in terms(n) if t in fresh},
                )
            )
        return tuple(out)

    def _encode(self, texts: list[str]) -> Vectors:
        new = [t for t in dict.fromkeys(texts) if t not in self._vectors]
        if new:
            encode = getattr(self.encoder, "encode_query", self.encoder.encode)
            self._vectors.update(zip(new, encode(new), strict=True))
        return np.stack([self._vectors[t] for t in texts])


def _stems(names: Sequence[str]) -> dict[str, str]:
    """The first term of each word of these names."""
    return {word: (terms(word) or [word])[0] for word in dict.fromkeys(w for n in names for w in n.split())}


def _idf(frequency: int, blocks: int) -> float:
    """Inverse document frequency divided by that of a unique term, so that it is comparable between index sizes."""
    total = max(blocks, MIN_BLOCKS)
    return math.log1p((total - frequency + 0.5) / (frequency + 0.5)) / math.log1p((total + 0.5) / 0.5)
