"""Which chunks of a context hold evidence, and when it is complete.

The papers label a chunk by what it holds. Where the loop may come back to a chunk, it can be labelled by what is due: a
fact that cannot be told to matter before those in front of it are known does not help yet, as in the warm-up's traces.
"""

from collections.abc import Sequence
from typing import Literal

from compmem.schema import Chunk
from compmem.tasks.sample import Sample

Labels = Literal["any", "due"]


class Evidence:
    """Labels of a context's chunks, by number.

    Args:
        sample: The question.
        chunks: Its context.
        labels: "any": evidence is evidence; "due": only the next fact of the chain is.
    """

    def __init__(self, sample: Sample, chunks: Sequence[Chunk], labels: Labels = "any") -> None:
        self._holds = [[sample.holds(chunk, span) for span in sample.evidence] for chunk in chunks]
        self._facts = len(sample.evidence)
        # What cannot be answered is never complete, whatever is found.
        self._answerable = sample.metric != "unanswerable" and self._facts > 0
        self._due = labels == "due"

    def supports(self, chunk: int, known: int = 0) -> bool:
        """Whether a chunk helps where so many facts of the chain are known."""
        held = self._holds[chunk]
        return known < self._facts and held[known] if self._due else any(held)

    def known_after(self, chunk: int, known: int) -> int:
        """Facts of the chain that are known once this chunk was read and noted."""
        while known < self._facts and self._holds[chunk][known]:
            known += 1
        return known

    def enough(self, order: Sequence[int], noted: Sequence[bool]) -> int:
        """The step after which to stop, for chunks read in this order; the last one where evidence is never complete.

        Args:
            order: Chunks in reading order, those that were not reached too.
            noted: Whether each step that was made put its chunk into the notes.
        """
        if not self._answerable:
            return len(order) - 1
        if not self._due:
            return max((step for step, chunk in enumerate(order) if any(self._holds[chunk])), default=len(order) - 1)
        known = 0
        for step, chunk in enumerate(order):
            # A chunk that was not reached would have been noted.
            if step >= len(noted) or noted[step]:
                known = self.known_after(chunk, known)
            if known == self._facts:
                return step
        return len(order) - 1
