"""Calls of several threads in one batch: a server's requests that encode at the same time share one forward pass."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from compmem.locks import Lock
from compmem.schema import Vectors

MOST_TEXTS = 512
"""Texts of a batch above which no other call joins it."""


@dataclass(slots=True, eq=False)
class _Call:
    """The texts of one caller; `vectors` or `error` is set when they were encoded."""

    texts: Sequence[str]
    vectors: Vectors | None = field(default=None, init=False)
    error: Exception | None = field(default=None, init=False)

    @property
    def done(self) -> bool:
        return self.vectors is not None or self.error is not None


class MergedCalls:
    """A function of texts that runs once at a time; the calls that come in the meantime make up the next batch.

    No call waits for others to come: where there is one caller, its texts are run at once and alone.

    Args:
        run: Texts to vectors `[texts, dim]`; the vector of a text must not depend on the others but for rounding.
    """

    def __init__(self, run: Callable[[Sequence[str]], Vectors]) -> None:
        self._of_texts = run
        self._turn = Lock()
        self._waiting: deque[_Call] = deque()

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """The vectors of these texts. Raises what `run` raises for them alone."""
        call = _Call(texts)
        self._waiting.append(call)
        with self._turn:
            while not call.done:
                self._run_waiting()
        if call.error is not None:
            raise call.error
        assert call.vectors is not None
        return call.vectors

    def run(self, texts: Sequence[str]) -> Vectors:
        """The vectors of these texts, at once."""
        return self._of_texts(texts)

    def _run_waiting(self) -> None:
        """Runs the calls that wait, the first ones if they are many."""
        batch = [self._waiting.popleft()]
        while self._waiting and sum(len(call.texts) for call in batch) < MOST_TEXTS:
            batch.append(self._waiting.popleft())
        try:
            self._encode(batch)
        finally:  # an interrupt in this thread is none of the others' business
            self._waiting.extendleft(call for call in reversed(batch) if not call.done)

    def _encode(self, batch: Sequence[_Call]) -> None:
        try:
            vectors = self.run([text for call in batch for text in call.texts])
        except Exception as error:
            if len(batch) == 1:
                batch[0].error = error
            else:
                for call in batch:
                    self._encode([call])
            return
        at = 0
        for call in batch:
            call.vectors = vectors[at : at + len(call.texts)]
            at += len(call.texts)
