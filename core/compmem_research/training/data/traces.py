"""Step traces: what the loop should do with each chunk of a question's context, from the positions of the evidence.

A chunk helps if it contains the next fact of the chain: one that is recognisable from the question and the notes so
far. A chunk with a later fact does not help yet; the loop may come back to it. The note of a made-up fact has a fixed
form; for other evidence it is the sentence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np

from compmem.backbone import Backbone, chunk_ids
from compmem.readers import StepPrompts
from compmem.schema import Chunk
from compmem_research.tasks.sample import Sample
from compmem_research.training.data.examples import Example
from compmem_research.training.data.sources import SampleSource, chunks_of

STEP, SKIP, ANSWER = "step", "skip", "answer"
"""Parts of the loss: steps whose chunk helps, steps whose chunk does not, answers."""
HARD = 0.8
"""Share of distractors among the chunks that do not help, if there are any."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceStep:
    """One correct step."""

    chunk: Chunk
    question: str
    memory: str
    """The notes before it."""
    check: bool
    """Whether the chunk helps."""
    update: str
    """The notes after it."""
    end: bool
    """Whether they suffice for the answer."""
    due: int = 0
    """The next piece of evidence."""

    @property
    def reply(self) -> str:
        """The structured reply (2602.10560)."""
        return structured(check=self.check, update=self.update if self.check else "", end=self.end)


def structured(*, check: bool, update: str, end: bool) -> str:
    """A reply in the format of the readers."""
    said, then = "yes" if check else "no", "end" if end else "continue"
    return f"<check>{said}</check><update>{update}</update><next>{then}</next>"


def notes_of(sample: Sample) -> tuple[str, ...]:
    """The note for each piece of evidence."""
    if sample.notes:
        return sample.notes
    texts = {document.id: document.text for document in sample.documents}
    return tuple(texts[span.document][span.start : span.end].strip() for span in sample.evidence)


def answer_of(sample: Sample, memory: str) -> str:
    """The target answer: the first accepted one, or all of them in the order of the notes."""
    if sample.metric != "all":
        return sample.answers[0]
    return ", ".join(sorted(sample.answers, key=memory.find))


def trace(sample: Sample, chunks: Sequence[Chunk]) -> Iterator[TraceStep]:
    """The steps over the chunks in this order, up to the one that completes the notes."""
    notes, memory = notes_of(sample), ""
    open_ = list(range(len(notes)))
    for chunk in chunks:
        before, due, found = memory, min(open_, default=0), sample.new_evidence(chunk, open_)
        open_ = [i for i in open_ if i not in found]
        memory = " ".join(part for part in (before, *(notes[i] for i in found)) if part)
        # The notes of an unanswerable question are never complete.
        end = bool(notes) and not open_ and sample.metric != "unanswerable"
        yield TraceStep(
            chunk=chunk, question=sample.question, memory=before, check=bool(found), update=memory, end=end, due=due
        )  # fmt: skip
        if end:
            return


def contrast(sample: Sample, step: TraceStep) -> TraceStep | None:
    """The same chunk and notes with a question for which the chunk does not help, if the sample has one."""
    question = "".join(sample.contrasts[step.due : step.due + 1]) if step.check else ""
    return replace(step, question=question, check=False, update=step.memory, end=False) if question else None


def as_curriculum(sample: Sample, chunks: Sequence[Chunk], chance: Random, skips: int) -> list[Chunk]:
    """The chunks in a training order: those with evidence in the order of the hops, and before each some without.

    Most of the latter contain distractors, since a gate passes such chunks to a reader. Chunks with later evidence are
    among them, as in a document.
    """
    due: list[Chunk] = []
    for span in sample.evidence:
        due += [c for c in chunks if sample.holds(c, span) and c not in due]
    others = [c for c in chunks if c not in due]
    order: list[Chunk] = []
    for number, chunk in enumerate(due):
        for _ in range(min(skips, len(others))):
            hard = [c for c in others if any(sample.is_distractor(c, piece) for piece in range(number + 1))]
            passed = chance.choice(hard if hard and chance.random() < HARD else others)
            others.remove(passed)
            order.append(passed)
        order += [c for c in due[number + 1 :] if chance.random() < 0.5]
        order.append(chunk)
    return order or others[:skips]


def step_example(prompts: StepPrompts, step: TraceStep, *, prefix: str = "") -> Example:
    """A step as a training row."""
    name, chunk = prefix + (STEP if step.check else SKIP), chunk_ids(prompts.backbone, step.chunk)
    return _learned(prompts.backbone, name, prompts.step(step.question, step.memory), step.reply, (chunk,))


def answer_example(prompts: StepPrompts, question: str, memory: str, answer: str, *, prefix: str = "") -> Example:
    """An answer as a training row."""
    return _learned(prompts.backbone, prefix + ANSWER, prompts.answer(question, memory), answer, ())


def _learned(backbone: Backbone, part: str, prompt: list[int], reply: str, blocks: tuple[list[int], ...]) -> Example:
    ids = [*prompt, *backbone.encode_reply(reply), backbone.tokenizer.eos_token_id]
    return Example(part=part, blocks=blocks, ids=ids, spans=((len(prompt), len(ids)),))


class StepRows:
    """Rows of whole traces: the steps of a sample and, if its evidence is complete, the answer.

    Args:
        prompts: Makes the rows.
        source: Where the samples come from.
        tokens: Approximate chunk tokens of one sample.
        skips: Most chunks without evidence before each one with it.
        prefix: Prefix of the parts' names.
    """

    def __init__(
        self, prompts: StepPrompts, source: SampleSource, *, tokens: int, skips: int = 1, prefix: str = ""
    ) -> None:
        self._prompts = prompts
        self._source = source
        self._tokens = tokens
        self._skips = skips
        self._prefix = prefix

    def __call__(self, rng: np.random.Generator, size: int, items: int, held: bool) -> list[Example]:
        """Rows with chunks of at most `size` tokens, from questions of at most `items` hops."""
        chance, rows, used = Random(int(rng.integers(1 << 62))), list[Example](), 0
        while used < self._tokens:
            sample = self._source(int(rng.integers(1 << 31)), size, items, held)
            chunks = as_curriculum(sample, chunks_of(sample, self._prompts.backbone, size), chance, self._skips)
            memory, done = "", False
            for step in trace(sample, chunks):
                asked = (step, contrast(sample, step))
                rows += [step_example(self._prompts, s, prefix=self._prefix) for s in asked if s]
                memory, done = step.update, step.end
                used += size
            if done:
                answer = answer_of(sample, memory)
                rows.append(answer_example(self._prompts, sample.question, memory, answer, prefix=self._prefix))
        return rows
