"""Candidate generation over an external retriever: it is queried with texts, and its results are the only candidates.

It is queried with the question and the names in it, then with each new line of the working memory: question and line
together, the line's names with the terms that are still missing, and each of the names. Term weights and known names
come from the results so far.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from compmem.retrieval.candidates import JOINT_LINES, RANKED, CandidateGenerator
from compmem.retrieval.query import QueryState
from compmem.text.tokenize import capital_runs, content_terms, name, terms, words

MAX_NAMES = 4
"""Maximum number of names of a question or a line that are queried."""

PER_NAME = 10
"""Maximum number of documents to request for a name."""

Ask = Callable[[Mapping[str, int]], list[list[int]]]
"""Queries the retriever with each text, for a number of documents each, and adds the results to the lexical index;
returns the numbers of the blocks, best first."""


@dataclass(slots=True, kw_only=True)
class RetrieverCandidateGenerator(CandidateGenerator):
    """Proposes the retriever's results, and earlier results that words and links point to."""

    ask: Ask
    depth: int
    """Documents to request for the question; half as many for question and line together."""
    _rankings: dict[str, list[int]] = field(default_factory=dict)
    """The results of the retriever for each text; no text is queried twice."""
    _joint: list[str] = field(default_factory=list)
    _narrow_queries: list[str] = field(default_factory=list)

    def propose(self, memory: str) -> list[int]:
        """Numbers of candidate blocks, each once, the strongest signal first."""
        self.retrieve(memory)
        return CandidateGenerator.propose(self, memory)

    def retrieve(self, memory: str) -> None:
        """Sends the retriever new queries for the question and the newest lines of the memory."""
        question = self.analyzer.question
        lines = [line for line in memory.split("\n") if line.strip()][-JOINT_LINES:]
        self._joint = [question, *(f"{question} {line}" for line in lines)]
        self._narrow_queries = _narrow_queries(question, lines, terms(memory))
        wanted = {question: self.depth, **dict.fromkeys(self._joint[1:], max(self.depth // 2, 1))}
        wanted = {**wanted, **{text: min(PER_NAME, self.depth) for text in self._narrow_queries if text not in wanted}}
        new = {text: k for text, k in wanted.items() if text not in self._rankings}
        if not new:
            return
        before = len(self.lexical_index)
        self._rankings.update(zip(new, self.ask(new), strict=True))
        self._nearest = self._rankings[question]
        if len(self.lexical_index) > before:
            self._bm25 = None
            self.analyzer.renew()

    def nearest(self, k: int = RANKED) -> list[int]:
        """The first k blocks among the retriever's results for the question."""
        return (self._nearest or [])[:k]

    def _dense_signals(self, state: QueryState) -> list[list[int]]:
        first, *joint = (self._rankings[text] for text in self._joint)
        narrow = (self._rankings[text] for text in self._narrow_queries)
        return [
            first[: self.per_signal],
            *(found[: self.per_signal // 2] for found in joint),
            *(found[:PER_NAME] for found in narrow),
        ]


def _narrow_queries(question: str, lines: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names in question and lines, and the names of each line with the question's missing words."""
    queries = [*capital_runs(question)[:MAX_NAMES]]
    covered, wanted = frozenset(known), frozenset(content_terms(question))
    missing = [w for w in words(question) if any(t in wanted and t not in covered for t in terms(w))]
    folded = f" {name(question)} "
    for line in lines:
        fresh = [run for run in capital_runs(line) if f" {name(run)} " not in folded][:MAX_NAMES]
        if fresh and missing:
            queries.append(" ".join([*fresh, *missing]))
        queries += fresh
    return list(dict.fromkeys(queries))
