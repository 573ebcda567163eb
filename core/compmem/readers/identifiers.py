"""Sentences that an identifier links: `b = a` bears on a question about the value of `a`, though it shares no word."""

import re
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from compmem.retrieval.query import QueryAnalyzer
from compmem.schema import Chunk, Evidence

MIN_RARITY = 0.7
"""Inverse document frequency from which an identifier links sentences; in five of 1,000 blocks it is below that."""

MAX_SENTENCES = 6
"""Maximum number of sentences of an identifier that is followed: more have a unit or a currency rather than a name."""

PER_BLOCK = 12
"""Maximum number of sentences of one block that are linked."""

_IDENTIFIER = re.compile(
    r"(?<![\w-])(?=[\w-]{0,63}[A-Z_])(?=[\w-]{0,63}[0-9_]|[A-Z]{4})[A-Za-z0-9_]+(?:-[A-Za-z0-9_]+){0,8}(?![\w-])"
)
_LABEL = re.compile(_IDENTIFIER.pattern + r"(?=:\s)")
_LENGTHS = range(3, 65)


def identifiers(text: str) -> set[str]:
    """Variables, codes and part numbers in a text: with a digit or underscore, or four capitals; no plain numbers.

    Shorter words in capitals are currencies and abbreviations.
    """
    return {found for found in _IDENTIFIER.findall(text) if len(found) in _LENGTHS}


@dataclass(frozen=True, slots=True)
class IdentifierLinks:
    """Finds linked sentences for one question, in whatever order their blocks are read."""

    analyzer: QueryAnalyzer
    _sentences: dict[str, list[Evidence]] = field(default_factory=dict)
    """The sentences of the blocks so far, by identifier."""
    _labels: Counter[str] = field(default_factory=Counter)
    """In how many of these sentences an identifier stands before a colon."""
    _seen: set[str] = field(default_factory=set)
    _rarity: dict[str, float] = field(default_factory=dict)

    def see(self, chunk: Chunk) -> None:
        """Remembers the sentences of a block that contain identifiers."""
        if chunk.id in self._seen:
            return
        self._seen.add(chunk.id)
        held = ((span, found) for span in chunk.spans if (found := identifiers(chunk.text[slice(*span)])))
        for span, found in islice(held, PER_BLOCK):
            evidence = Evidence.of(chunk, span)
            for identifier in found:
                self._sentences.setdefault(identifier, []).append(evidence)
            self._labels.update(set(_LABEL.findall(evidence.text)))

    def linked(self, kept: Sequence[Evidence]) -> Iterator[Evidence]:
        """The sentences that rare identifiers link to kept ones, directly or by other sentences.

        Each has the score of the kept sentence. Those that are kept with that score already are left out. Not followed
        is an identifier that many blocks or sentences contain, or that is the label of values in several.
        """
        best = {(e.chunk.id, e.start): e.score for e in kept}
        asked = identifiers(self.analyzer.question)
        waiting = deque(sorted(kept, key=lambda e: -e.score))
        followed: set[str] = set()
        while waiting:
            source = waiting.popleft()
            for identifier in sorted(identifiers(source.text) - asked - followed):
                followed.add(identifier)
                there = () if self._labels[identifier] > 1 else self._sentences.get(identifier, ())
                better = [e for e in there if best.get((e.chunk.id, e.start), -1.0) < source.score]
                if better and len(there) <= MAX_SENTENCES and self._rare(identifier):
                    for found in better:
                        best[found.chunk.id, found.start] = source.score
                        link = replace(found, score=source.score)
                        waiting.appendleft(link)
                        yield link

    def _rare(self, identifier: str) -> bool:
        if identifier not in self._rarity:
            self._rarity[identifier] = self.analyzer.rarity(identifier)
        return self._rarity[identifier] >= MIN_RARITY
