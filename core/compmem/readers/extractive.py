"""The reader without a language model: it keeps the sentences that are relevant to the question and quotes them."""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from compmem.readers.chat import NOTHING_FOUND
from compmem.readers.identifiers import IdentifierLinks
from compmem.retrieval.query import QueryAnalyzer, QueryState
from compmem.schema import Chunk, Evidence, MemoryBlock, Reading, Usage, Vectors, WorkingMemory
from compmem.text.tokenize import content_terms, heading_over, root, terms, words

KEPT = 3
"""Most sentences kept from one block."""

QUOTED = 3
"""Sentences quoted in an answer."""

LEAST_RELEVANCE = 0.25
"""Sentences below this score are not relevant to the question."""

QUOTED_SHARE = 0.5
"""Sentences with at least this share of the best score are quoted too: a question may have several answers."""

MOST_QUOTED = 12
"""Most sentences quoted in an answer if several are equally good."""

MOST_ADDED = 3
"""Most sentences of quoted chunks added for words of the question that no quoted sentence has."""

ADDED_SHARE = 0.1
"""Least share of the question's weight that such a sentence adds."""

ALONE_SHARE = 0.3
"""That share for a sentence without a further word in common with the quoted ones: the question asks for two things."""

_PRONOUNS = frozenset("he her his it its she that their these they this those".split())


@dataclass(slots=True)
class ExtractiveReader:
    """Quotes sentences. Serves one question: it shares the analyser, and so the encoded question, with the gate."""

    analyzer: QueryAnalyzer
    _links: IdentifierLinks = field(init=False)

    def __post_init__(self) -> None:
        self._links = IdentifierLinks(self.analyzer)

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The memory plus the best sentences of these blocks and linked ones; the gate decides when to stop."""
        view = self.analyzer.analyze("")
        known = set(memory.text.split("\n"))
        best = [(e, line_of(view, e)) for block in blocks for e in best_sentences(view, block)]
        new = [e for e, line in best if line not in known]
        for block in blocks:
            self._links.see(block.chunk)
        linked = list(self._links.linked([*memory.evidence, *new]))
        lines = dict.fromkeys([*(line for _, line in best), *(line_of(view, e) for e in linked)])
        kept = WorkingMemory(
            text="\n".join([*filter(None, memory.text.split("\n")), *(line for line in lines if line not in known)]),
            evidence=(*memory.evidence, *new, *linked),
        )
        new += linked
        return Reading(memory=kept, update=any(e.score >= LEAST_RELEVANCE for e in new), exit=False)

    async def aread(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The same; it never waits."""
        return self.read(question, memory, blocks)

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Usage]:
        """The best kept sentence of each of the best chunks, in reading order; more of a chunk if equally good.

        If words of the question are in none of them, sentences of the same chunks that have these are added.
        """
        if not memory.evidence:
            yield NOTHING_FOUND
            return
        quoted = _supporting(memory.evidence)
        weights = self.analyzer.analyze("").weights
        # A word whose stem no block has may still be there in another form: founder, founded.
        asked = {root(t): weights.get(t) or 1.0 for t in content_terms(self.analyzer.question)}
        if added := _completing(asked, quoted):
            place = list(dict.fromkeys(e.chunk.id for e in quoted))
            quoted = sorted([*quoted, *added], key=lambda e: (place.index(e.chunk.id), e.start))
        for number, evidence in enumerate(quoted):
            yield ("" if number == 0 else " ") + " ".join(evidence.text.split())

    async def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Usage]:
        """The same; it never waits."""
        for piece in self.write(question, memory):
            yield piece


def line_of(view: QueryState, evidence: Evidence) -> str:
    """A sentence as a line of the working memory: label, context that the question refers to, then the text."""
    label, text = evidence.chunk.label, evidence.text
    if not label:  # in a block with several topics, the paragraph's own heading is the label
        label = heading_over(evidence.chunk.text, evidence.start)
        text = text.removeprefix(label)
    asked_by = [line for line in evidence.chunk.context_lines() if not view.weights.keys().isdisjoint(terms(line))]
    return ": ".join(filter(None, [" › ".join(filter(None, [label, *asked_by])), " ".join(text.split())]))


def best_sentences(view: QueryState, block: MemoryBlock, most: int = KEPT) -> list[Evidence]:
    """The most relevant sentences of a block for the question, in their order."""
    chunk = block.chunk
    spans = chunk.sentences or ((0, len(chunk.text)),)
    scores = _sentence_scores(view, block, [chunk.text[a:b] for a, b in spans])
    about = set(words(chunk.label))
    ranked = np.argsort(-scores, kind="stable").tolist()
    informative = [i for i in ranked if not about.issuperset(_words_of(chunk, spans[i]))]
    best = sorted((informative or [0])[:most])  # a heading adds nothing to the label
    return [
        Evidence(text=chunk.text[a:b].strip(), chunk=chunk, start=a, end=b, score=float(scores[i]))
        for i in best
        for a, b in [spans[i]]
    ]


def _words_of(chunk: Chunk, span: tuple[int, int]) -> list[str]:
    return words(chunk.text[span[0] : span[1]])


def _sentence_scores(view: QueryState, block: MemoryBlock, sentences: list[str]) -> Vectors:
    """The relevance of each sentence to the question, `[sentences]` in [0, 1]: similarity and share of words."""
    assert block.vectors is not None, "the extractive reader needs dense memory"
    near = block.vectors[1:] @ view.question if len(block.vectors) > 1 else block.vectors @ view.question
    total = sum(view.weights.values()) or 1.0
    beside = terms(block.chunk.context)
    shares = [sum(view.weights.get(t, 0.0) for t in {*beside, *terms(s)}) / total for s in sentences]
    return np.clip((near + 0.5 * np.asarray(shares, dtype=np.float32)) / 1.5, 0.0, 1.0)


def _supporting(evidence: Sequence[Evidence]) -> list[Evidence]:
    """The best sentences of each of the best chunks, in reading order; more if others are equally good.

    A chunk has several best ones if identifiers link them, since a linked sentence has the score of the other.
    """
    best: dict[str, list[Evidence]] = {}
    for item in evidence:
        held = best.setdefault(item.chunk.id, [item])
        if item.score > held[0].score:
            best[item.chunk.id] = [item]
        elif item.score == held[0].score and all(e.text != item.text for e in held):
            held.append(item)
    every = [e for held in best.values() for e in held]
    ranked = sorted(every, key=lambda e: (-e.score, len(e.text)))
    others = [e for e in ranked[QUOTED:MOST_QUOTED] if e.score >= QUOTED_SHARE * ranked[0].score]
    chosen = {id(e) for e in [*ranked[:QUOTED], *others]}
    return [e for e in every if id(e) in chosen]


def _completing(asked: Mapping[str, float], quoted: Sequence[Evidence]) -> list[Evidence]:
    """Further sentences of the quoted chunks, with words of the question that the quoted ones lack.

    Each shares a word with those before it that is not the question's ("Acme rents the Harbour Building. The Harbour
    Building is insured by Lloyd."), follows one and begins with a pronoun, or has much that is missing.

    Args:
        asked: The weight of the root of each word of the question.
        quoted: The sentences quoted so far.
    """
    known = set[str]().union(*(_roots(e.text) | _roots(e.chunk.label) for e in quoted))
    missing, linking = {r: weight for r, weight in asked.items() if r not in known}, known - asked.keys()
    others = [(e, _roots(e.text), _of_someone(e.text)) for e in _beside(quoted)] if missing else []
    total, added = sum(asked.values()), list[Evidence]()
    while len(added) < MOST_ADDED:
        possible = list[tuple[bool, float, int]]()
        for place, (_, own, of_someone) in enumerate(others):
            linked, adds = not own.isdisjoint(linking), sum(missing.get(r, 0.0) for r in own)
            if adds >= total * (ADDED_SHARE if linked or of_someone else ALONE_SHARE):
                possible.append((linked, adds, -place))
        if not possible:
            break
        sentence, own, _ = others.pop(-max(possible)[2])
        added.append(sentence)
        missing = {r: weight for r, weight in missing.items() if r not in own}
        linking |= own - asked.keys()
    return added


def _beside(quoted: Sequence[Evidence]) -> Iterator[Evidence]:
    """The other sentences of the quoted chunks; one that begins with a pronoun only directly after a quoted one."""
    held = {(e.chunk.id, e.start) for e in quoted}
    for chunk in {e.chunk.id: e.chunk for e in quoted}.values():
        before = -1
        for a, b in chunk.sentences:
            text = chunk.text[a:b].strip()
            if (chunk.id, a) not in held and ((chunk.id, before) in held or not _of_someone(text)):
                yield Evidence(text=text, chunk=chunk, start=a, end=b, score=0.0)
            before = a


def _of_someone(text: str) -> bool:
    """Whether a sentence begins with a pronoun."""
    return not _PRONOUNS.isdisjoint(words(text.partition(" ")[0]))


def _roots(text: str) -> set[str]:
    return {root(t) for t in content_terms(text)}
