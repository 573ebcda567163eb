"""The reader without a language model: it keeps the sentences that are relevant to the question and quotes them."""

import re
from collections.abc import AsyncIterator, Iterator, Sequence, Set
from dataclasses import dataclass, field

import numpy as np

from compmem.readers.answers import NOTHING_FOUND
from compmem.readers.identifiers import IdentifierLinks
from compmem.readers.outline import Outline, Outlines, is_fence, is_question
from compmem.readers.quotation import quotation
from compmem.readers.quoting import quoted_sentences
from compmem.readers.siblings import without_siblings
from compmem.retrieval.query import QueryAnalyzer, QueryState
from compmem.schema import Evidence, MemoryBlock, Reading, Usage, Vectors, WorkingMemory
from compmem.text.tokenize import STOPWORDS, heading_over, name, names_of, root, terms, words

MAX_SENTENCES_PER_BLOCK = 3
"""Maximum number of sentences kept from one block."""

MIN_RELEVANCE = 0.25
"""Sentences below this score are not relevant to the question."""

LINKED_BONUS = 0.15
"""What a sentence gains by a name that the working memory has and neither the question nor its own chunk's label."""

NAMED_BONUS = 0.075
"""What each sentence of a document gains if a kept sentence of another one has its title, and the question has not."""

_NAME = re.compile(r"\b[^\W\d_][\w&-]{2,63}")


@dataclass(slots=True)
class ExtractiveReader:
    """Quotes sentences. Serves one question: it shares the analyser, and so the encoded question, with the gate."""

    analyzer: QueryAnalyzer
    _links: IdentifierLinks = field(init=False)
    _outlines: Outlines = field(init=False, default_factory=Outlines)
    _folded_texts: dict[str, str] = field(init=False, default_factory=dict)
    """Kept sentences as names are written, since they are searched for each title."""

    def __post_init__(self) -> None:
        self._links = IdentifierLinks(self.analyzer)

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The memory plus the best sentences of these blocks and linked ones; the gate decides when to stop."""
        state = self.analyzer.analyze("")
        known = set(memory.text.split("\n"))
        asked = self.analyzer.question  # without typing errors
        names = _names(memory.text) - _names(asked) if memory.text else set[str]()
        read = {e.chunk.id for e in memory.evidence}  # their names are their own
        found = [(b, set[str]() if b.chunk.id in read else names, self._is_named(memory, b, asked)) for b in blocks]
        kept = [
            e for block, new, named in found
            for e in best_sentences(state, block, self._outlines.of(block.chunk), new, named=named)
        ]  # fmt: skip
        best = [(e, self._line(state, e)) for e in kept]
        new = [e for e, line in best if line not in known]
        for block in blocks:
            self._links.add(block.chunk)
        linked = list(self._links.find_linked([*memory.evidence, *new]))
        lines = dict.fromkeys([*(line for _, line in best), *(self._line(state, e) for e in linked)])
        new += linked
        evidence = (*memory.evidence, *new)
        after = WorkingMemory(
            text="\n".join([*filter(None, memory.text.split("\n")), *(line for line in lines if line not in known)]),
            evidence=_once(evidence) if linked else evidence,
        )
        return Reading(memory=after, update=any(e.score >= MIN_RELEVANCE for e in new), exit=False)

    def _line(self, state: QueryState, evidence: Evidence) -> str:
        """A sentence as a line of the working memory: label, context that the question refers to, then the text."""
        chunk, text = evidence.chunk, evidence.text
        if chunk.label:
            label = " › ".join(dict.fromkeys(filter(None, [chunk.title, *self._outlines.path(evidence)])))
        else:
            label = heading_over(chunk.text, evidence.start)
            text = text.removeprefix(f"{label}\n")
        asked_by = [line for line in chunk.context_lines() if not state.weights.keys().isdisjoint(terms(line))]
        return ": ".join(filter(None, [" › ".join(filter(None, [label, *asked_by])), " ".join(text.split())]))

    def _is_named(self, memory: WorkingMemory, block: MemoryBlock, question: str) -> bool:
        """Whether a sentence kept of another document has this one's title, and the question has not: the next hop."""
        chunk, asked = block.chunk, f" {name(question)} "
        titles = [f" {title} " for title, _ in names_of(chunk.title, (), "") if f" {title} " not in asked]
        for e in memory.evidence if titles else ():
            if e.chunk.document_id == chunk.document_id:
                continue
            if (said := self._folded_texts.get(e.text)) is None:
                said = self._folded_texts[e.text] = f" {name(e.text)} "
            if any(title in said for title in titles):
                return True
        return False

    async def aread(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The same; it never waits."""
        return self.read(question, memory, blocks)

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Usage]:
        """The sentences that `quoted_sentences` chooses from the evidence."""
        if not memory.evidence:
            yield NOTHING_FOUND
            return
        weights = self.analyzer.analyze("").weights
        # A word whose stem no block has may still be there in another form: founder, founded.
        asked = {root(t): weights.get(t) or 1.0 for t in self.analyzer.question_terms}
        evidence = without_siblings(self.analyzer.question, memory.evidence, self._outlines)
        yield from quotation(quoted_sentences(asked, evidence, self._outlines), self._outlines)

    async def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Usage]:
        """The same; it never waits."""
        for piece in self.write(question, memory):
            yield piece


def _once(evidence: Sequence[Evidence]) -> tuple[Evidence, ...]:
    """Each sentence once, with its best score: a link repeats one that was kept with a lower score."""
    best = dict[tuple[str, int], Evidence]()
    for e in evidence:
        place = (e.chunk.id, e.start)
        best[place] = max(best.get(place, e), e, key=lambda one: one.score)
    return tuple(best.values())


def best_sentences(
    state: QueryState, block: MemoryBlock, outline: Outline, names: Set[str], *, named: bool
) -> list[Evidence]:  # fmt: skip
    """The most relevant sentences of a block for the question, in their order.

    Args:
        state: The question.
        block: The block.
        outline: That of its chunk.
        names: Names that what was read before adds to the question.
        named: Its title is one of them, so that all of its sentences are about it.
    """
    chunk = block.chunk
    scores = _sentence_scores(state, block, outline, names - _names(chunk.label))
    scores = np.clip(scores + NAMED_BONUS, 0.0, 1.0) if named else scores
    ranked = np.argsort(-scores, kind="stable").tolist()
    about = set(words(chunk.title))
    informative = [i for i in ranked if _says_something(outline, i, about)]
    best = sorted((informative or [0])[:MAX_SENTENCES_PER_BLOCK])
    return [Evidence.of(chunk, chunk.spans[i], float(scores[i])) for i in best]


def _says_something(outline: Outline, place: int, about: set[str]) -> bool:
    """Whether a sentence says more than its document's title does, or asks what the next sentences answer."""
    text = outline.texts[place]
    if (outline.levels[place] and place not in outline.heads) or is_fence(text):
        return False
    return is_question(text) or not about.issuperset(words(text))


def _sentence_scores(state: QueryState, block: MemoryBlock, outline: Outline, names: Set[str]) -> Vectors:
    """The relevance of each sentence to the question, `[sentences]` in [0, 1]: similarity, share of words, and a name.

    The words of what introduces a sentence, of the headings above it in the chunk but for the title, and of the chunk's
    context count as its own.
    """
    assert block.vectors is not None, "the extractive reader needs dense memory"
    near = block.vectors[1:] @ state.question if len(block.vectors) > 1 else block.vectors @ state.question
    total = sum(state.weights.values()) or 1.0
    asked = state.weights.keys()
    own, beside = [asked & terms(text) for text in outline.texts], asked & terms(block.chunk.context)
    title = set(words(block.chunk.title))
    above = [
        set[str]() if level and title.issuperset(words(text)) else one
        for one, level, text in zip(own, outline.levels, outline.texts, strict=True)
    ]
    held = [one.union(beside, *(above[n] for n in outline.above(place))) for place, one in enumerate(own)]
    shares = [sum(weight for t, weight in state.weights.items() if t in one) / total for one in held]
    linked = [LINKED_BONUS * _has_name(outline, place, names) for place in range(len(outline.texts))]
    relevance = (near + 0.5 * np.asarray(shares, dtype=np.float32)) / 1.5 + np.asarray(linked, dtype=np.float32)
    return np.clip(relevance, 0.0, 1.0)


def _has_name(outline: Outline, place: int, names: Set[str]) -> bool:
    """Whether a sentence has one of the names, or the sentence that its pronoun refers to."""
    about = (outline.texts[n] for n in (place, *outline.named_before(place))) if names else ()
    return any(not names.isdisjoint(_names(text)) for text in about)


def _names(text: str) -> set[str]:
    """Capitalised words, in lower case."""
    return {name.lower() for name in _NAME.findall(text) if name[0].isupper()} - STOPWORDS
