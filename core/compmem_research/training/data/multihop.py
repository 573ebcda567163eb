"""Rows of a multi-hop set: a question behind its paragraphs, each compressed alone, and its short answer.

The prompt is `LatentPrompts.from_blocks`, from which an answer is written when recalled blocks are read at once.
"""

from pathlib import Path
from zlib import crc32

import numpy as np

from compmem.backbone import chunk_ids
from compmem.readers import StepPrompts
from compmem.schema import Chunk
from compmem_research.tasks.multihop import Question, read_corpus
from compmem_research.training.data.examples import Example, as_text

HELD_SHARE = 20
"""One in this many questions of a set is held out."""


def is_held(question: Question) -> bool:
    """Whether a question of a training set is held out for measuring; decided by its id."""
    return crc32(question.id.encode()) % HELD_SHARE == 0


class MultihopRows:
    """Questions of a set, each behind its gold paragraphs and others of its own, in random order.

    Args:
        part: Name of the part of the loss.
        file: The set.
        prompts: Make the question's turn.
        tokens: Approximate paragraph tokens of one sample.
        raw: Share of samples that are given as plain tokens instead of memory.

    Raises:
        ValueError: The file has a broken line, or too few questions with gold paragraphs.
    """

    def __init__(self, part: str, file: Path, prompts: StepPrompts, *, tokens: int, raw: float) -> None:
        self._part = part
        self._backbone = prompts.backbone
        self._prompts = prompts
        self._tokens = tokens
        self._raw = raw
        corpus = read_corpus(file)
        self._passages = corpus.passages
        asked = [q for q in corpus.questions if q.gold and q.answers[0].strip()]
        self._parts = {held: [q for q in asked if is_held(q) is held] for held in (True, False)}
        if not all(self._parts.values()):
            raise ValueError(f"{file}: {len(asked)} questions with gold paragraphs are too few to hold some out")

    def __call__(self, rng: np.random.Generator, size: int, items: int, held: bool) -> list[Example]:
        """Rows with paragraphs cut at `size` tokens, at least `items` of them where a question has so many."""
        raw, rows, used = rng.random() < self._raw, list[Example](), 0
        while used < self._tokens:
            question = self._parts[held][int(rng.integers(len(self._parts[held])))]
            chunks = self._chunks(question, rng, size, items)
            used += sum(map(len, chunks))
            rows.append(self._row(question, chunks, raw=raw))
        return rows

    def _chunks(self, question: Question, rng: np.random.Generator, size: int, items: int) -> list[list[int]]:
        gold, others = sorted(question.gold), sorted(question.own - question.gold)
        chosen = [*gold, *rng.permutation(others)[: max(0, items - len(gold))].tolist()]
        passages = [self._passages[number] for number in rng.permutation(chosen).tolist()]
        return [chunk_ids(self._backbone, Chunk(text=p.text, title=p.title))[:size] for p in passages]

    def _row(self, question: Question, chunks: list[list[int]], *, raw: bool) -> Example:
        backbone = self._backbone
        prompt = self._prompts.from_blocks(question.question)
        ids = [*prompt, *backbone.encode(question.answers[0].strip()), backbone.tokenizer.eos_token_id]
        row = Example(part=self._part, blocks=tuple(chunks), ids=ids, spans=((len(prompt), len(ids)),))
        return as_text(backbone, row) if raw else row
