"""One question over one context of known length, for benchmarks and training."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from compmem.schema import Chunk, Document
from compmem_research.metrics import string_match, sub_em

Metric = Literal["sub_em", "all", "any", "unanswerable"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """A span of one document's text that contains evidence."""

    document: str
    """Id of the document."""
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """A question, its documents in order, and the positions of its evidence."""

    id: str
    task: str
    question: str
    answers: tuple[str, ...]
    """For `sub_em` and `any` one of them is enough; for `all` the share found counts."""
    documents: tuple[Document, ...]
    evidence: tuple[Span, ...]
    """In the order in which the facts depend on each other, if that is known."""
    metric: Metric = "sub_em"
    tokens: int = 0
    """Tokens of the documents, by the counter that the task was built with."""
    notes: tuple[str, ...] = ()
    """The note for each piece of evidence in a working memory; empty: the text of the evidence."""
    distractors: tuple[tuple[Span, ...], ...] = ()
    """Distractors for each piece of evidence, if known."""
    contrasts: tuple[str, ...] = ()
    """For each piece of evidence a similar question that it does not answer: the chain to its subject is the same but
        another relation is asked; or the same relation of another subject. Empty if there is none."""

    def score(self, prediction: str, *, found: bool = True) -> float:
        """The score of an answer, in [0, 1]. `found` is what the answer says of itself."""
        if self.metric == "unanswerable":
            return float(not found)
        if self.metric == "sub_em":
            return sub_em(prediction, self.answers)
        share = string_match(prediction, self.answers)
        return share if self.metric == "all" else float(share > 0)

    def supports(self, chunk: Chunk) -> bool:
        """Whether a chunk contains at least half of a span of evidence."""
        return any(self.holds(chunk, span) for span in self.evidence)

    def holds(self, chunk: Chunk, span: Span) -> bool:
        """Whether a chunk contains at least half of this span."""
        shared = min(chunk.end, span.end) - max(chunk.start, span.start)
        return chunk.document_id == span.document and 2 * shared >= span.end - span.start

    def is_distractor(self, chunk: Chunk, piece: int) -> bool:
        """Whether a chunk contains a distractor of this piece of evidence."""
        return piece < len(self.distractors) and any(self.holds(chunk, span) for span in self.distractors[piece])

    def new_evidence(self, chunk: Chunk, open_: Sequence[int]) -> list[int]:
        """Numbers of the evidence that a chunk adds if these pieces are still unknown, in their order in the chunk.

        A fact that depends on others adds nothing before they are known; needles depend on nothing.
        """
        left, found = list(open_), list[int]()
        while due := [n for n in self._due(left) if self.holds(chunk, self.evidence[n])]:
            found.append(due[0])
            left.remove(due[0])
        return found

    def _due(self, open_: Sequence[int]) -> Sequence[int]:
        return open_ if self.task.startswith("niah_") else open_[:1]

    def joined(self, id: str = "context", separator: str = "\n\n") -> Self:
        """The same question over one document that contains all the texts, each with its title."""
        parts, starts, at = [], {}, 0
        for document in self.documents:
            head = f"{document.title}\n" if document.title else ""
            starts[document.id] = at + len(head)
            parts.append(head + document.text)
            at += len(parts[-1]) + len(separator)

        def moved(spans: Iterable[Span]) -> tuple[Span, ...]:
            shifted = ((s, starts[s.document]) for s in spans)
            return tuple(Span(document=id, start=by + s.start, end=by + s.end) for s, by in shifted)

        return replace(
            self,
            documents=(Document(id=id, text=separator.join(parts)),),
            evidence=moved(self.evidence),
            distractors=tuple(map(moved, self.distractors)),
        )
