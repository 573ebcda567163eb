"""Which chunks of a context hold evidence, and when it is complete.

The papers label a chunk by what it holds. Where the loop may come back to a chunk, it can be labelled by what is due: a
fact that cannot be told to matter before those in front of it are known does not help yet, as in the warm-up's traces.
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
        chunks: Its context.
        labels: "any": evidence is evidence; "due": only the next fact of the chain is.

    Attributes:
        all: Numbers of the facts that answer the question.
    """

    def __init__(self, sample: Sample, chunks: Sequence[Chunk], labels: Labels = "any") -> None:
        self.all = tuple(range(len(sample.evidence)))
        self._sample = sample
        self._chunks = chunks
        # What cannot be answered is never complete, whatever is found.
        self._answerable = sample.metric != "unanswerable" and bool(self.all)
        self._due = labels == "due"

    def supports(self, chunk: int, open_: Sequence[int]) -> bool:
        """Whether a chunk helps where these facts are still unknown."""
        return bool(self._told(chunk, open_)) if self._due else self._sample.supports(self._chunks[chunk])

    def open_after(self, chunk: int, open_: Sequence[int]) -> tuple[int, ...]:
        """The facts still unknown once this chunk was read and noted."""
        told = self._told(chunk, open_)
        return tuple(fact for fact in open_ if fact not in told)

    def enough(self, order: Sequence[int], noted: Sequence[bool]) -> int:
        """The step after which to stop, for chunks read in this order; the last one where evidence is never complete.

        Args:
            order: Chunks in reading order, those that were not reached too.
            noted: Whether each step that was made put its chunk into the notes.
        """
        last = len(order) - 1
        if not self._answerable:
            return last
        if not self._due:
            return max((step for step, chunk in enumerate(order) if self.supports(chunk, self.all)), default=last)
        open_ = self.all
        for step, chunk in enumerate(order):
            # A chunk that was not reached would have been noted.
            if step >= len(noted) or noted[step]:
                open_ = self.open_after(chunk, open_)
            if not open_:
                return step
        return last

    def _told(self, chunk: int, open_: Sequence[int]) -> list[int]:
        return self._sample.told(self._chunks[chunk], open_)
