"""Step traces: what the loop should do with each chunk of a question's context, from where its evidence stands.

A chunk helps where it holds the next fact of the chain: one that can be told from the question and the notes so far. So
a chunk with a later fact does not help yet; the loop may come back to it. The note of a made-up fact is canonical, that
of any other evidence its sentence.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Protocol, cast
from zlib import crc32

import numpy as np

from compmem.backbone import Backbone
from compmem.chunking import TokenCounter, split
from compmem.compressor import chunk_ids
from compmem.readers.latent import LatentPrompts
from compmem.schema import Chunk
from compmem.tasks.contexts import Contexts
from compmem.tasks.filler import Filler
from compmem.tasks.multihop import Passage, Question, read_corpus
from compmem.tasks.ruler import Ruler, RulerTask
from compmem.tasks.sample import Sample
from compmem.tasks.worlds import WorldConfig, Worlds, WorldSample
from compmem.training.examples import Example
from compmem.training.text import Text

STEP, SKIP, ANSWER = "step", "skip", "answer"
"""Parts of the loss: steps whose chunk helps, steps whose chunk does not, answers."""
FILLER_TOKENS, PASSAGES = 48, 4000
"""Tokens of a window of text that fills up, and how many there are at least."""
ROOM = 8
"""Most times that a context is made larger for the facts to fit in."""
HELD_SHARE = 20
"""One in so many questions of a set is held out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TraceStep:
    """One step as it should be."""

    chunk: Chunk
    question: str
    memory: str
    """The notes before it."""
    check: bool
    """Whether the chunk helps."""
    update: str
    """The notes after it."""
    end: bool
    """Whether they suffice."""

    @property
    def reply(self) -> str:
        """The structured reply (2602.10560)."""
        return structured(check=self.check, update=self.update if self.check else "", end=self.end)


def structured(*, check: bool, update: str, end: bool) -> str:
    """A reply in the form that the readers parse."""
    said, then = "yes" if check else "no", "end" if end else "continue"
    return f"<check>{said}</check><update>{update}</update><next>{then}</next>"


def notes_of(sample: Sample) -> list[str]:
    """What a working memory keeps of each span of evidence."""
    if isinstance(sample, WorldSample):
        return [fact.note for fact in sample.facts]
    texts = {document.id: document.text for document in sample.documents}
    return [texts[span.document][span.start : span.end].strip() for span in sample.evidence]


def answer_of(sample: Sample, memory: str) -> str:
    """What is to be said: the first answer that counts, or all of them in the order of the notes."""
    if sample.metric != "all":
        return sample.answers[0]
    return ", ".join(sorted(sample.answers, key=memory.find))


def trace(sample: Sample, chunks: Sequence[Chunk]) -> Iterator[TraceStep]:
    """The steps over the chunks in this order, up to the one that completes the notes."""
    notes, memory = notes_of(sample), ""
    open_ = list(range(len(notes)))
    for chunk in chunks:
        before, found = memory, list[int]()
        while due := [i for i in _due(sample, open_) if sample.holds(chunk, sample.evidence[i])]:
            found.append(due[0])
            open_.remove(due[0])
        memory = " ".join(part for part in (before, *(notes[i] for i in found)) if part)
        # What cannot be answered is never complete, whatever is found.
        end = bool(notes) and not open_ and sample.metric != "unanswerable"
        yield TraceStep(
            chunk=chunk, question=sample.question, memory=before, check=bool(found), update=memory, end=end
        )  # fmt: skip
        if end:
            return


def _due(sample: Sample, open_: Sequence[int]) -> Sequence[int]:
    """The evidence that can be told from what is known: all of it where nothing builds on it, else the next fact."""
    return open_ if sample.task.startswith("niah_") else open_[:1]


def chunks_of(sample: Sample, backbone: Backbone, tokens: int) -> list[Chunk]:
    """The chunks of a sample's documents, in order."""
    count = lambda texts: [len(backbone.encode(t)) for t in texts]  # noqa: E731
    return [c for document in sample.documents for c in split(document, chunk_tokens=tokens, count=count)]


def passages_of(backbone: Backbone, text: Text | None, *, tokens: int = 0, held: bool = False) -> list[Passage] | None:
    """Windows of packed text as filler, of so many tokens at least; None, for made-up facts, where there is no text."""
    if text is None:
        return None
    rng = np.random.default_rng(int(held))
    count = max(PASSAGES, tokens // FILLER_TOKENS)
    windows = (text.window(rng, FILLER_TOKENS, held=held) for _ in range(count))
    return [Passage(title="", sentences=(backbone.decode(w).replace("\ufffd", " "),)) for w in windows]


def in_lessons(sample: Sample, chunks: Sequence[Chunk], chance: Random, skips: int) -> list[Chunk]:
    """The chunks in an order to learn from: those with evidence as it builds up, and before each some that lack it.

    Chunks with evidence that is not due yet stand among those, as they do in a document.
    """
    due: list[Chunk] = []
    for span in sample.evidence:
        due += [c for c in chunks if sample.holds(c, span) and c not in due]
    others = [c for c in chunks if c not in due]
    chance.shuffle(others)
    order: list[Chunk] = []
    for number, chunk in enumerate(due):
        later = [c for c in due[number + 1 :] if chance.random() < 0.5]
        order += [*others[number * skips : (number + 1) * skips], *later, chunk]
    return order or others[:skips]


class StepPrompts:
    """A step's and an answer's turns as the latent reader gives them.

    Args:
        backbone: Whose template and tokenizer serve.
        prompts: What it is told.
    """

    def __init__(self, backbone: Backbone, prompts: LatentPrompts) -> None:
        self.backbone = backbone
        self.prompts = prompts
        self._update = backbone.prompt(prompts.update)
        self._answer = backbone.prompt(prompts.answer)

    def update(self, question: str, memory: str) -> list[int]:
        """The prompt of a step, behind a block."""
        return self._update.fill(question=self.backbone.encode(question), memory=self._notes(memory))

    def answer(self, question: str, memory: str) -> list[int]:
        """The prompt of the answer."""
        return self._answer.fill(question=self.backbone.encode(question), memory=self._notes(memory))

    def _notes(self, memory: str) -> list[int]:
        return self.backbone.encode(memory.strip() or self.prompts.nothing)

    def step_example(self, step: TraceStep, *, prefix: str = "") -> Example:
        """A step as a row to learn from."""
        name = prefix + (STEP if step.check else SKIP)
        chunk = chunk_ids(self.backbone, step.chunk)
        return self._learned(name, self.update(step.question, step.memory), step.reply, (chunk,))

    def answer_example(self, question: str, memory: str, answer: str, *, prefix: str = "") -> Example:
        """An answer as a row to learn from."""
        return self._learned(prefix + ANSWER, self.answer(question, memory), answer, ())

    def _learned(self, part: str, prompt: list[int], reply: str, blocks: tuple[list[int], ...]) -> Example:
        written = [*self.backbone.encode(reply), self.backbone.tokenizer.eos_token_id]
        ids = [*prompt, *written]
        return Example(part=part, blocks=blocks, ids=ids, spans=((len(prompt), len(ids)),))


class SampleSource(Protocol):
    """Where the samples of step rows come from."""

    def __call__(self, number: int, size: int, items: int, held: bool) -> Sample:
        """The sample of a number, for chunks of so many tokens and at most so many hops."""
        ...


class MadeUpSource:
    """Made-up worlds and RULER tasks of a few chunks each.

    Args:
        filler: What stands between the facts.
        config: How hard worlds are; tokens and hops are set by the level.
        tasks: "world" and names of RULER tasks; each sample draws one.
        chunks: Chunks of one context, about.
    """

    def __init__(self, filler: Filler, config: WorldConfig, tasks: Sequence[str], *, chunks: int) -> None:
        self._filler = filler
        self._config = config
        self._tasks = tasks
        self._chunks = chunks

    def __call__(self, number: int, size: int, items: int, held: bool) -> Sample:
        """The sample of a number, as one document; held-out ones have a seed of their own."""
        task, seed = self._tasks[number % len(self._tasks)], self._config.seed + held
        tokens = size * self._chunks
        while True:
            try:
                return self._made(task, number, tokens, items, seed).joined()
            except ValueError:
                # Facts with long names need more room; how much shows when they are made.
                if tokens > ROOM * size * self._chunks:
                    raise
                tokens *= 2

    def _made(self, task: str, number: int, tokens: int, hops: int, seed: int) -> Sample:
        if task == "world":
            config = replace(self._config, tokens=tokens, hops=tuple(range(1, hops + 1)), seed=seed)
            return Worlds(config, self._filler).sample(number)
        return Ruler(self._filler, split=self._config.split, seed=seed).sample(cast("RulerTask", task), tokens, number)


class QuestionSource:
    """Questions of a multi-hop set among their own paragraphs; one in a few is held out.

    Args:
        file: The set.
        count: Counts tokens.
        chunks: Chunks of one context, about.

    Raises:
        ValueError: The file has a broken line, or too few questions.
    """

    def __init__(self, file: Path, count: TokenCounter, *, chunks: int) -> None:
        self._contexts = Contexts(read_corpus(file), count)
        self._chunks = chunks
        self._parts: dict[bool, list[Question]] = {True: [], False: []}
        for question in self._contexts.questions:
            self._parts[crc32(question.id.encode()) % HELD_SHARE == 0].append(question)
        if not all(self._parts.values()):
            raise ValueError(f"{file}: {len(self._contexts.questions)} questions are too few to hold some out")

    def __call__(self, number: int, size: int, items: int, held: bool) -> Sample:
        """A question of this number; the hops are as they come."""
        part = self._parts[held]
        return self._contexts.sample(part[number % len(part)], size * self._chunks)


class StepRows:
    """Rows of whole traces: the steps of a sample and, where its evidence is complete, the answer.

    Args:
        prompts: Makes the rows.
        source: Where the samples come from.
        tokens: Chunk tokens of one drawing, about.
        skips: Most chunks without evidence before each one with it.
        prefix: Of the parts' names.
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
            chunks = in_lessons(sample, chunks_of(sample, self._prompts.backbone, size), chance, self._skips)
            memory, done = "", False
            for step in trace(sample, chunks):
                rows.append(self._prompts.step_example(step, prefix=self._prefix))
                memory, done = step.update, step.end
                used += size
            if done:
                answer = answer_of(sample, memory)
                rows.append(self._prompts.answer_example(sample.question, memory, answer, prefix=self._prefix))
        return rows
