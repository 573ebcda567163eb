"""The first stage over somebody else's retriever: it is asked in words, and what it brings is all there is to look at.

It is asked with the question and the names in it, then with each new line of the working memory: question and line
together, the line's names with what is still missing of the question, and each of the names. Terms are weighed, and
names known, by what the question has brought so far.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from compmem.retrieval.candidates import JOINT_LINES, RANKED, FirstStage
from compmem.retrieval.query import QueryState
from compmem.text.tokenize import capital_runs, content_terms, name, terms, words

MOST_NAMES = 4
"""Names in a question or a line that are asked for."""

PER_NAME = 10
"""Documents that are asked for by a name, at most."""

Ask = Callable[[Mapping[str, int]], list[list[int]]]
"""Asks the retriever each text, for so many documents, and adds what it brings to the lexicon: the numbers of the
blocks, best first."""


@dataclass(slots=True, kw_only=True)
class RetrievedStage(FirstStage):
    """Proposes what a retriever brings, and of all that it has brought what words and links point to."""

    ask: Ask
    depth: int
    """Documents that are asked for by the question; for question and line together, half of them."""
    _rankings: dict[str, list[int]] = field(default_factory=dict)
    """What the retriever brought for each text; none is asked twice."""
    _joint: list[str] = field(default_factory=list)
    _narrow: list[str] = field(default_factory=list)

    def propose(self, memory: str) -> list[int]:
        """Numbers of the blocks that may bear on the question, each once, the strongest signal first."""
        self.retrieve(memory)
        return FirstStage.propose(self, memory)

    def retrieve(self, memory: str) -> None:
        """Asks the retriever what it was not asked before, for the question and the newest lines of the memory."""
        question = self.analyzer.question
        lines = [line for line in memory.split("\n") if line.strip()][-JOINT_LINES:]
        self._joint = [question, *(f"{question} {line}" for line in lines)]
        self._narrow = _narrow(question, lines, terms(memory))
        wanted = {question: self.depth, **dict.fromkeys(self._joint[1:], max(self.depth // 2, 1))}
        wanted = {**wanted, **{text: min(PER_NAME, self.depth) for text in self._narrow if text not in wanted}}
        new = {text: k for text, k in wanted.items() if text not in self._rankings}
        if not new:
            return
        before = len(self.lexicon)
        self._rankings.update(zip(new, self.ask(new), strict=True))
        self._nearest = self._rankings[question]
        if len(self.lexicon) > before:
            self._bm25 = None
            self.analyzer.renew()

    def nearest(self, k: int = RANKED) -> list[int]:
        """The first k blocks that the retriever brought for the question."""
        return (self._nearest or [])[:k]

    def _dense_signals(self, view: QueryState) -> list[list[int]]:
        first, *joint = (self._rankings[text] for text in self._joint)
        narrow = (self._rankings[text] for text in self._narrow)
        return [
            first[: self.per_signal],
            *(found[: self.per_signal // 2] for found in joint),
            *(found[:PER_NAME] for found in narrow),
        ]


def _narrow(question: str, lines: Sequence[str], known: Sequence[str]) -> list[str]:
    """The names in question and lines, and those of each line beside the question's words that are still missing."""
    asked = [*capital_runs(question)[:MOST_NAMES]]
    covered, wanted = frozenset(known), frozenset(content_terms(question))
    missing = [w for w in words(question) if any(t in wanted and t not in covered for t in terms(w))]
    folded = f" {name(question)} "
    for line in lines:
        fresh = [run for run in capital_runs(line) if f" {name(run)} " not in folded][:MOST_NAMES]
        if fresh and missing:
            asked.append(" ".join([*fresh, *missing]))
        asked += fresh
    return list(dict.fromkeys(asked))
