"""Labels of chunks with evidence, and the step at which the evidence is complete.

The papers label a chunk by its content. If the loop may come back to a chunk, it can be labelled by what is due: a fact
that depends on others does not help before those are known, as in the warm-up's traces.
"""

from collections.abc import Sequence
from typing import Literal

from compmem.schema import Chunk
from compmem_research.tasks.sample import Sample

Labels = Literal["any", "due"]


class Evidence:
    """Labels of a context's chunks, by number.

    Args:
        sample: The question.
        chunks: The chunks of its context.
        labels: "any": all evidence counts; "due": only the next fact of the chain.

    Attributes:
        all: Numbers of the facts that answer the question.
    """

    def __init__(self, sample: Sample, chunks: Sequence[Chunk], labels: Labels = "any") -> None:
        self.all = tuple(range(len(sample.evidence)))
        self._sample = sample
        self._chunks = chunks
        # The evidence of an unanswerable question is never complete.
        self._answerable = sample.metric != "unanswerable" and bool(self.all)
        self._due = labels == "due"

    def supports(self, chunk: int, open_: Sequence[int]) -> bool:
        """Whether a chunk helps if these facts are still unknown."""
        return bool(self._new_facts(chunk, open_)) if self._due else self._sample.supports(self._chunks[chunk])

    def open_after(self, chunk: int, open_: Sequence[int]) -> tuple[int, ...]:
        """The facts that are still unknown after this chunk was read and noted."""
        new = self._new_facts(chunk, open_)
        return tuple(fact for fact in open_ if fact not in new)

    def enough(self, order: Sequence[int], noted: Sequence[bool]) -> int:
        """The step after which to stop, for chunks in this order; the last one if the evidence is never complete.

        Args:
            order: Chunks in reading order, including unread ones.
            noted: Whether each finished step added its chunk to the notes.
        """
        last = len(order) - 1
        if not self._answerable:
            return last
        if not self._due:
            return max((step for step, chunk in enumerate(order) if self.supports(chunk, self.all)), default=last)
        open_ = self.all
        for step, chunk in enumerate(order):
            # An unread chunk is assumed to be noted.
            if step >= len(noted) or noted[step]:
                open_ = self.open_after(chunk, open_)
            if not open_:
                return step
        return last

    def _new_facts(self, chunk: int, open_: Sequence[int]) -> list[int]:
        return self._sample.new_evidence(self._chunks[chunk], open_)
