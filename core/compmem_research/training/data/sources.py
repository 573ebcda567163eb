"""Sources of questions over documents: made-up worlds and RULER tasks, or a multi-hop set; and their chunks."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, cast

import numpy as np

from compmem.backbone import Backbone
from compmem.ingest.chunking import TokenCounter, split
from compmem.schema import Chunk
from compmem_research.tasks.contexts import Contexts
from compmem_research.tasks.haystack import Filler
from compmem_research.tasks.multihop import Passage, Question, read_corpus
from compmem_research.tasks.ruler import Ruler, RulerTask
from compmem_research.tasks.sample import Sample
from compmem_research.tasks.synthetic_facts import WorldConfig, Worlds
from compmem_research.training.data.multihop import is_held
from compmem_research.training.data.packed import PackedText

FILLER_TOKENS, PASSAGES = 48, 4000
"""Tokens of a window of filler text, and the least number of windows."""
ROOM = 8
"""Most times that a context is enlarged until the facts fit."""


class SampleSource(Protocol):
    """A source of samples."""

    def __call__(self, number: int, size: int, items: int, held: bool) -> Sample:
        """The sample with this number, for chunks of this many tokens and at most this many hops."""
        ...


class MadeUpSource:
    """Made-up worlds and RULER tasks of a few chunks each.

    Args:
        filler: Text between the facts.
        config: Difficulty of worlds; tokens and hops are set by the level.
        tasks: "world" and names of RULER tasks; each sample uses one.
        chunks: Approximate number of chunks of one context.
    """

    def __init__(self, filler: Filler, config: WorldConfig, tasks: Sequence[str], *, chunks: int) -> None:
        self._filler = filler
        self._config = config
        self._tasks = tasks
        self._chunks = chunks

    def __call__(self, number: int, size: int, items: int, held: bool) -> Sample:
        """The sample with this number, as one document; held-out ones have a separate seed."""
        task, seed = self._tasks[number % len(self._tasks)], self._config.seed + held
        tokens = size * self._chunks
        while True:
            try:
                return self._made(task, number, tokens, items, seed).joined()
            except ValueError:
                # Facts with long names need more space; how much is known only when they are made.
                if tokens > ROOM * size * self._chunks:
                    raise
                tokens *= 2

    def _made(self, task: str, number: int, tokens: int, hops: int, seed: int) -> Sample:
        if task == "world":
            config = replace(self._config, tokens=tokens, hops=tuple(range(1, hops + 1)), seed=seed)
            return Worlds(config, self._filler).sample(number)
        return Ruler(self._filler, split=self._config.split, seed=seed).sample(cast("RulerTask", task), tokens, number)


class QuestionSource:
    """Questions of a multi-hop set among their own paragraphs; some are held out.

    Args:
        file: The set.
        count: Counts tokens.
        chunks: Approximate number of chunks of one context.

    Raises:
        ValueError: The file has a broken line, or too few questions.
    """

    def __init__(self, file: Path, count: TokenCounter, *, chunks: int) -> None:
        self._contexts = Contexts(read_corpus(file), count)
        self._chunks = chunks
        self._parts: dict[bool, list[Question]] = {True: [], False: []}
        for question in self._contexts.questions:
            self._parts[is_held(question)].append(question)
        if not all(self._parts.values()):
            raise ValueError(f"{file}: {len(self._contexts.questions)} questions are too few to hold some out")

    def __call__(self, number: int, size: int, items: int, held: bool) -> Sample:
        """A question with this number, or the next one whose evidence fits; its hops are as in the set.

        Raises:
            ValueError: No question's evidence fits.
        """
        part, tokens = self._parts[held], size * self._chunks
        for later in range(len(part)):
            question = part[(number + later) % len(part)]
            if self._contexts.evidence_tokens(question) <= tokens:
                return self._contexts.sample(question, tokens)
        raise ValueError(f"no question's evidence fits in {self._chunks} chunks of {size} tokens")


def source_of(
    backbone: Backbone,
    file: Path | None,
    config: WorldConfig,
    tasks: Sequence[str],
    *,
    chunks: int,
    text: PackedText | None,
) -> SampleSource:
    """The questions of a file if it is given, else made-up tasks with filler text.

    Args:
        backbone: Its tokenizer counts.
        file: A multi-hop set.
        config: Difficulty of made-up worlds.
        tasks: The made-up tasks.
        chunks: Approximate number of chunks of one context.
        text: Text between the facts. None: made-up facts.

    Raises:
        ValueError: The file has a broken line, or too few questions.
    """
    count = token_counter(backbone)
    if file is not None:
        return QuestionSource(file, count, chunks=chunks)
    return MadeUpSource(Filler(count, passages_of(backbone, text)), config, tasks, chunks=chunks)


def token_counter(backbone: Backbone) -> TokenCounter:
    """Token counter of the backbone."""
    return lambda texts: [len(backbone.encode(text)) for text in texts]


def chunks_of(sample: Sample, backbone: Backbone, tokens: int) -> list[Chunk]:
    """The chunks of a sample's documents, in order."""
    count = token_counter(backbone)
    return [c for document in sample.documents for c in split(document, chunk_tokens=tokens, count=count)]


def passages_of(
    backbone: Backbone, text: PackedText | None, *, tokens: int = 0, held: bool = False
) -> list[Passage] | None:
    """Windows of packed text as filler, with at least this many tokens; None (made-up facts) if there is no text."""
    if text is None:
        return None
    rng = np.random.default_rng(int(held))
    count = max(PASSAGES, tokens // FILLER_TOKENS)
    windows = (text.window(rng, FILLER_TOKENS, held=held) for _ in range(count))
    return [Passage(title="", sentences=(backbone.decode(w).replace("\ufffd", " "),)) for w in windows]
