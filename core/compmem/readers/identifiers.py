"""Sentences that others point to, by an identifier or by a number, though they may share no word with the question.

`b = a` bears on a question about the value of `a`, and clause 7.3 on one that a sentence answers "as clause 7.3 says".
"""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from compmem.retrieval.query import QueryAnalyzer
from compmem.schema import Chunk, Evidence

MIN_RARITY = 0.7
"""Inverse document frequency from which an identifier links sentences; in five of 1,000 blocks it is below that."""

MAX_SENTENCES = 6
"""Maximum number of sentences of an identifier that is followed: more have a unit or a currency rather than a name."""

_IDENTIFIER = re.compile(
    r"(?<![\w-])(?=[\w-]{0,63}[A-Z_])(?=[\w-]{0,63}[0-9_]|[A-Z]{4})[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+){0,8}(?![\w-])"
)
_REFERENCE = re.compile(
    r"(?:\b(?:articles?|clauses?|sections?|paragraphs?|steps?|rules?|artikel|absatz|abschnitt|ziffer|cláusula|artículo"
    r"|sección)|§)\s{0,3}(\d{1,3}(?:\.\d{1,3}){0,4})\b",
    re.IGNORECASE,
)
_NUMBERED = re.compile(
    r"(?:#{1,6} |\*\*|\()?(?:(?:article|clause|section|paragraph|step|rule|artikel|absatz|abschnitt|§)\s{0,3})?"
    r"(\d{1,3}(?:\.\d{1,3}){0,4})[.):]?\s",
    re.IGNORECASE,
)
_LABEL = re.compile(_IDENTIFIER.pattern + r"(?=:\s)")
_ASSIGNED = re.compile(
    rf"{_IDENTIFIER.pattern}(?=\s?:?=(?![=>]))|(?<![=!<>])=(?![=>])\s?(?:[A-Za-z]{{1,8}}\s)?(?P<value>{_IDENTIFIER.pattern})"
)
"""A name beside the sign of an assignment, as in `LIMIT = MAXIMUM`; the value may have a word before it."""
_LENGTHS = range(3, 65)


def identifiers(text: str) -> set[str]:
    """Variables, codes and part numbers in a text: with a digit or underscore, or four capitals; no plain numbers.

    Shorter words in capitals are currencies and abbreviations.
    """
    return {found for found in _IDENTIFIER.findall(text) if len(found) in _LENGTHS}


def rare_identifiers(evidence: Sequence[Evidence], analyzer: QueryAnalyzer) -> Iterator[str]:
    """The rare identifiers in the sentences with the highest score that are not in the question, first read first.

    Left out are labels of values and abbreviations: words with neither a digit nor an underscore, unless they stand
    beside the sign of an assignment.
    """
    best = max((e.score for e in evidence), default=0.0)
    texts = [e.text for e in evidence if e.score == best]
    found = dict.fromkeys(one for text in texts for one in sorted(_specific(text) - set(_LABEL.findall(text))))
    asked = identifiers(analyzer.question)
    return (one for one in found if one not in asked and analyzer.rarity(one) >= MIN_RARITY)


def _specific(text: str) -> set[str]:
    """The identifiers of a text that are no abbreviations."""
    assigned = {found["value"] or found[0] for found in _ASSIGNED.finditer(text)}
    return {one for one in identifiers(text) if "_" in one or any(c.isdigit() for c in one) or one in assigned}


@dataclass(frozen=True, slots=True)
class IdentifierLinks:
    """Finds linked sentences for one question, in whatever order their blocks are read."""

    analyzer: QueryAnalyzer
    _sentences: dict[str, list[Evidence]] = field(default_factory=dict)
    """The sentences of the blocks so far, by identifier."""
    _labels: Counter[str] = field(default_factory=Counter)
    """In how many of these sentences an identifier stands before a colon."""
    _numbered: dict[tuple[str, str], list[Evidence]] = field(default_factory=dict)
    """The sentences of the blocks so far that begin with a number, by document and number."""
    _chunk_ids: set[str] = field(default_factory=set)
    _rarity: dict[str, float] = field(default_factory=dict)

    def add(self, chunk: Chunk) -> None:
        """Remembers the sentences of a block that contain identifiers or begin with a number."""
        if chunk.id in self._chunk_ids:
            return
        self._chunk_ids.add(chunk.id)
        for span in chunk.spans:
            number, found = _NUMBERED.match(chunk.text, *span), identifiers(chunk.text[slice(*span)])
            if not (number or found):
                continue
            evidence = Evidence.of(chunk, span)
            if number:
                self._numbered.setdefault((chunk.document_id, number[1]), []).append(evidence)
            for identifier in found:
                self._sentences.setdefault(identifier, []).append(evidence)
            self._labels.update(set(_LABEL.findall(evidence.text)))

    def find_linked(self, kept: Sequence[Evidence]) -> Iterator[Evidence]:
        """The sentences that rare identifiers and numbers link to kept ones, directly or by other sentences.

        Each has the score of the kept sentence. Those that are kept with that score already are left out. Not followed
        is an identifier that many blocks or sentences contain, or that is the label of values in several, or a number
        with which several sentences of the document begin.
        """
        best = {(e.chunk.id, e.start): e.score for e in kept}
        asked = identifiers(self.analyzer.question)
        waiting = deque(sorted(kept, key=lambda e: -e.score))
        followed: set[str] = set()
        while waiting:
            source = waiting.popleft()
            linked = [e for number in _REFERENCE.findall(source.text) for e in self._beginning_with(number, source)]
            for identifier in sorted(identifiers(source.text) - asked - followed):
                followed.add(identifier)
                there = () if self._labels[identifier] > 1 else self._sentences.get(identifier, ())
                better = [e for e in there if best.get((e.chunk.id, e.start), -1.0) < source.score]
                if better and len(there) <= MAX_SENTENCES and self._rare(identifier):
                    linked += better
            for found in linked:
                if best.get((found.chunk.id, found.start), -1.0) < source.score:
                    best[found.chunk.id, found.start] = source.score
                    link = replace(found, score=source.score)
                    waiting.appendleft(link)
                    yield link

    def _beginning_with(self, number: str, source: Evidence) -> Sequence[Evidence]:
        """The sentence of the same document that begins with this number, if it is the only one."""
        found = self._numbered.get((source.chunk.document_id, number), ())
        return found if len(found) == 1 and found[0].start != source.start else ()

    def _rare(self, identifier: str) -> bool:
        if identifier not in self._rarity:
            self._rarity[identifier] = self.analyzer.rarity(identifier)
        return self._rarity[identifier] >= MIN_RARITY
