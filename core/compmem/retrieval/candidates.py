"""The first stage: dense, lexical and link signals propose the blocks that the gate is to look at.

Each signal is asked again with every new working memory: the vectors of question and memory together, the question's
terms that the memory does not cover yet, and the names that the memory holds.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from compmem.retrieval.query import Lexicon, QueryAnalyzer, QueryState
from compmem.retrieval.ranking import SearchRanks
from compmem.retrieval.vector_search import DenseSearch
from compmem.text.tokenize import NameKind

JOINT_LINES = 4
"""Memory lines, the newest, whose joint vector with the question is searched."""

PER_NAME = 30
"""Blocks proposed for one name that the question or the memory holds."""

PER_MENTION = 15
"""Blocks proposed because their text holds such a name."""

RANKED = 100
"""Blocks in each ranking by the question alone, from which the gate learns where a block stands."""

BESIDE_FROM = 20_000
"""Blocks from which the dense and the lexical signals are asked side by side."""


class Words(Lexicon, Protocol):
    """What proposes blocks by their words: a snapshot, or what a filter leaves of it."""

    def lexical(self, terms: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """Blocks that hold any of these terms with their BM25 score, best first."""
        ...

    def phrase(self, words: Sequence[str], limit: int) -> list[int]:
        """Blocks in which these words follow one another, in document order."""
        ...

    def named(self, names: Sequence[str], per_name: int = ...) -> Mapping[str, Sequence[tuple[int, NameKind]]]:
        """The blocks that answer to each name, titles first."""
        ...


@dataclass(slots=True)
class FirstStage:
    """What proposes blocks for one question: every signal asked with the view of question and working memory."""

    analyzer: QueryAnalyzer
    lexicon: Words
    """The words and names of the blocks that may be candidates."""
    dense: DenseSearch | None
    admitted: NDArray[np.int64] | None
    """Numbers of the blocks that a filter admits; None where every block may be a candidate."""
    per_signal: int
    links: bool = True
    _depth: int = RANKED
    """Blocks in each ranking by the question alone."""
    _nearest: list[int] | None = None
    _bm25: list[tuple[int, float]] | None = None

    def nearest(self, k: int = RANKED) -> list[int]:
        """The k blocks nearest to the question by the vector of the whole chunk, best first."""
        if self._nearest is None or len(self._nearest) < min(k, len(self.lexicon)):
            self._depth, self._nearest = max(k, self._depth), None
            self._dense_signals(self.analyzer.analyze(""))
        assert self._nearest is not None
        return self._nearest[:k]

    def bm25(self, k: int = RANKED) -> list[tuple[int, float]]:
        """The k blocks that hold the question's terms best and their BM25 scores, best first."""
        if self._bm25 is None or self._depth < k:
            self._depth = max(k, self._depth)
            self._bm25 = self._lexical(list(self.analyzer.analyze("").weights), self._depth)
        return self._bm25[:k]

    def search_ranks(self, blocks: Sequence[int]) -> SearchRanks:
        """Where the searches for the question alone put these blocks."""
        return SearchRanks.from_rankings(blocks, self.nearest(), self.bm25())

    def propose(self, memory: str) -> list[int]:
        """Numbers of the blocks that may bear on the question, each once, the strongest signal first."""
        view = self.analyzer.analyze(memory)
        if len(self.lexicon) < BESIDE_FROM:
            near, told, linked = self._dense_signals(view), self._lexical_signals(view), self._name_links(view)
        else:  # SQLite and matrix products both let go of the interpreter, so they run side by side
            with ThreadPoolExecutor(max_workers=1) as beside:
                waiting = beside.submit(self._dense_signals, view)
                told, linked = self._lexical_signals(view), self._name_links(view)
                near = waiting.result()
        signals = [near[0], told[0], *near[1:], *told[1:], linked]
        return list(dict.fromkeys(n for signal in signals for n in signal))

    def _dense_signals(self, view: QueryState) -> list[list[int]]:
        """The nearest blocks to the question, then to it and each of the newest lines, in one pass over the vectors."""
        if self.dense is None:
            self._nearest = []
            return [[]]
        lines = view.joint[-JOINT_LINES:]
        queries = lines if self._nearest is not None else np.vstack([view.question[None], lines])
        found = self.dense.search(queries, max(self._depth, self.per_signal), self.admitted) if len(queries) else []
        if self._nearest is None:
            self._nearest, *found = found
        return [self._nearest[: self.per_signal], *(row[: self.per_signal // 2] for row in found)]

    def _lexical_signals(self, view: QueryState) -> list[list[int]]:
        """The blocks that hold the question's terms best; what is missing of them; that and a newest line's names."""
        found = [[n for n, _ in self.bm25(max(RANKED, self.per_signal))[: self.per_signal]]]
        if view.lines:
            missing = [t for t in view.weights if t not in view.covered]
            asked = [missing, *([*missing, *line.capitals] for line in view.lines[-JOINT_LINES:])]
            found += [[n for n, _ in self._lexical(terms, self.per_signal // 2)] for terms in asked]
        return found

    def _lexical(self, terms: Sequence[str], k: int) -> list[tuple[int, float]]:
        return self.lexicon.lexical(terms, k) if terms else []

    def _name_links(self, view: QueryState) -> list[int]:
        """Blocks that answer to a name which the question or the memory holds, then blocks that mention it."""
        if not self.links:
            return []
        told = {m.name: m for line in view.lines for m in line.mentions.values() if m.capitalised >= 0.5}
        names = list(dict.fromkeys([*view.names, *told]))
        found: list[int] = []
        for blocks in self.lexicon.named(names, PER_NAME).values():
            found += [n for n, _ in blocks]
        for name in names:
            if len(name) > 3:
                found += self.lexicon.phrase(name.split(), PER_MENTION)
        return found
