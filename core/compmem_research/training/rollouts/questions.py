"""Questions for rollouts: from made-up worlds, or from a multi-hop set."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compmem.backbone import Backbone, chunk_ids
from compmem.schema import Chunk
from compmem_research.tasks.sample import Sample
from compmem_research.tasks.synthetic_facts import WorldConfig
from compmem_research.training.data.packed import PackedText
from compmem_research.training.data.sources import chunks_of, source_of


@dataclass(frozen=True, slots=True)
class Context:
    """One question, with its chunks as token ids."""

    sample: Sample
    chunks: Sequence[Chunk]
    ids: Sequence[Sequence[int]]

    @classmethod
    def of(cls, sample: Sample, chunks: Sequence[Chunk], backbone: Backbone) -> "Context":
        """A question over these chunks."""
        return cls(sample, chunks, [chunk_ids(backbone, chunk) for chunk in chunks])


ContextSource = Callable[[int, bool], Context]
"""Returns the context with a number, from the held-out questions or from the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class QuestionSettings:
    """Settings of questions and contexts.

    Raises:
        ValueError: A value is out of its range.
    """

    file: Path | None = None
    """A multi-hop set. None: made-up tasks."""
    tasks: tuple[str, ...] = ("world",)
    """The made-up tasks: "world", and names of RULER tasks."""
    data: Path | None = None
    """Folder of packed text (`compmem train text`) as filler for worlds. None: made-up facts."""
    hops: int = 2
    """Most facts of a chain, in a world."""
    chunk_tokens: int = 512
    """Most tokens of a chunk."""
    chunks: int = 4
    """Approximate number of chunks of one context."""
    distractors: int = 3
    """Distractors for each fact of the chain."""
    wordings: int | None = None
    """Most wordings of a fact. None: all."""
    syllables: int = 2
    """Syllables of a made-up word."""

    def __post_init__(self) -> None:
        if min(self.hops, self.chunk_tokens, self.chunks) < 1:
            raise ValueError("hops, chunk_tokens and chunks must be at least 1")


def context_source(settings: QuestionSettings, backbone: Backbone, seed: int) -> ContextSource:
    """Contexts by number, tokenised for the backbone.

    Raises:
        ValueError: A file has a broken line, or too few questions.
    """
    config = WorldConfig(distractors=settings.distractors, wordings=settings.wordings, syllables=settings.syllables)
    data = settings.data if settings.file is None else None
    text = PackedText(data, len(backbone.tokenizer)) if data else None
    source = source_of(backbone, settings.file, config, settings.tasks, chunks=settings.chunks, text=text)

    def draw(number: int, held: bool) -> Context:
        # Held-out questions are the same for every seed, so that runs can be compared.
        drawn = int(np.random.default_rng((0 if held else seed, number)).integers(1 << 31))
        sample = source(drawn, settings.chunk_tokens, settings.hops, held)
        return Context.of(sample, chunks_of(sample, backbone, settings.chunk_tokens), backbone)

    return draw
