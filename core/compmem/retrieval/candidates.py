"""Candidate generation, the first stage of a search: dense, lexical and link signals propose blocks for the gate.

Each signal is queried again with every new working memory: the joint vectors of question and memory, the question's
terms that the memory does not cover yet, and the names in the memory.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compmem.retrieval.query import QueryAnalyzer, QueryState
from compmem.retrieval.ranking import SearchRanks
from compmem.retrieval.vector_search import DenseSearch
from compmem.store.lexical import LexicalIndex

JOINT_LINES = 4
"""The newest memory lines, whose joint vectors with the question are searched."""

PER_NAME = 30
"""Blocks proposed for one name in the question or the memory."""

PER_MENTION = 15
"""Blocks proposed because their text contains such a name."""

RANKED = 100
"""Blocks in each ranking by the question alone; the gate uses these ranks."""

PARALLEL_FROM = 20_000
"""Number of blocks from which the dense and the lexical signals run in parallel."""


@dataclass(slots=True)
class CandidateGenerator:
    """Proposes blocks for one question: queries every signal with the state of question and working memory."""

    analyzer: QueryAnalyzer
    lexical_index: LexicalIndex
    """The words and names of the blocks that may be candidates."""
    dense: DenseSearch | None
    admitted: NDArray[np.int64] | None
    """Numbers of the blocks that the filter admits; None if there is no filter."""
    per_signal: int
    links: bool = True
    _depth: int = RANKED
    """Blocks in each ranking by the question alone."""
    _nearest: list[int] | None = None
    _bm25: list[tuple[int, float]] | None = None
    _bm25_depth: int = 0
    """The depth for which it was computed."""

    def nearest(self, k: int = RANKED) -> list[int]:
        """The k blocks nearest to the question by the vector of the whole chunk, best first."""
        if self._nearest is None or len(self._nearest) < min(k, len(self.lexical_index)):
            self._depth, self._nearest = max(k, self._depth), None
            self._dense_signals(self.analyzer.analyze(""))
        assert self._nearest is not None
        return self._nearest[:k]

    def bm25(self, k: int = RANKED) -> list[tuple[int, float]]:
        """The k blocks with the highest BM25 scores for the question, with scores, best first."""
        if self._bm25 is None or self._bm25_depth < k:
            self._depth = self._bm25_depth = max(k, self._depth)
            (self._bm25,) = self.lexical_index.bm25([list(self.analyzer.analyze("").weights)], self._depth)
        return self._bm25[:k]

    def search_ranks(self, blocks: Sequence[int]) -> SearchRanks:
        """The ranks of these blocks in the searches for the question alone."""
        return SearchRanks.from_rankings(blocks, self.nearest(), self.bm25())

    def propose(self, memory: str) -> list[int]:
        """Numbers of candidate blocks, each once, the strongest signal first."""
        state = self.analyzer.analyze(memory)
        if len(self.lexical_index) < PARALLEL_FROM:
            near, lexical, linked = self._dense_signals(state), self._lexical_signals(state), self._name_links(state)
        else:  # SQLite and matrix products both release the GIL, so they run in parallel
            with ThreadPoolExecutor(max_workers=1) as beside:
                waiting = beside.submit(self._dense_signals, state)
                lexical, linked = self._lexical_signals(state), self._name_links(state)
                near = waiting.result()
        signals = [near[0], lexical[0], *near[1:], *lexical[1:], linked]
        return list(dict.fromkeys(n for signal in signals for n in signal))

    def _dense_signals(self, state: QueryState) -> list[list[int]]:
        """The nearest blocks to the question, then to it and each of the newest lines, in one pass over the vectors."""
        if self.dense is None:
            self._nearest = []
            return [[]]
        lines = state.joint[-JOINT_LINES:]
        queries = lines if self._nearest is not None else np.vstack([state.question[None], lines])
        found = self.dense.search(queries, max(self._depth, self.per_signal), self.admitted) if len(queries) else []
        if self._nearest is None:
            self._nearest, *found = found
        return [self._nearest[: self.per_signal], *(row[: self.per_signal // 2] for row in found)]

    def _lexical_signals(self, state: QueryState) -> list[list[int]]:
        """The best blocks by BM25 for the question, for its missing terms, and for these with each line's names."""
        missing = [t for t in state.weights if t not in state.covered]
        asked = [missing, *([*missing, *line.capitals] for line in state.lines[-JOINT_LINES:])] if state.lines else []
        runs = self._runs(self._names(state))
        first = [] if state.lines else [list(state.weights)]
        limit = self.per_signal // 2 if state.lines else max(RANKED, self.per_signal, self._depth)
        self.lexical_index.prepare_search(first or asked, limit, runs, PER_MENTION)
        found = [self.bm25(max(RANKED, self.per_signal)), *self.lexical_index.bm25(asked, self.per_signal // 2)]
        best, *others = ([n for n, _ in row] for row in found)
        return [best[: self.per_signal], *others]

    def _name_links(self, state: QueryState) -> list[int]:
        """Blocks with a name that is in the question or the memory, then blocks that mention such a name."""
        names = self._names(state)
        found = [n for name in names for n, _ in state.known.get(name, ())[:PER_NAME]]
        for row in self.lexical_index.phrases(self._runs(names), PER_MENTION):
            found += row
        return found

    def _names(self, state: QueryState) -> list[str]:
        """The names that are followed: those of the question and the capitalised ones of the memory."""
        if not self.links:
            return []
        memory_names = [m.name for line in state.lines for m in line.mentions.values() if m.capitalised >= 0.5]
        return list(dict.fromkeys([*state.names, *memory_names]))

    def _runs(self, names: Sequence[str]) -> list[list[str]]:
        """The words of the names that are also searched in texts."""
        return [name.split() for name in names if len(name) > 3]
