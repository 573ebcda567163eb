"""The gates that the loop can ask: each gives blocks a score in [0, 1] for a question and a working memory."""

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from compmem.config import LoopConfig
from compmem.gate import BackboneGate, FirstPass, GateHead, features, unknown_share
from compmem.kv_cache import KVCache
from compmem.loop.blocks import BlockLoader
from compmem.loop.loop import FEW_CANDIDATES
from compmem.retrieval.candidates import CandidateGenerator
from compmem.retrieval.query import QueryAnalyzer
from compmem.schema import Vectors
from compmem.text.codes import only_unknown_codes

_MIN_UNKNOWN_SHARE = 0.75
"""Share of the question's words, by weight, from which nothing answers if no block has them."""
_UNKNOWN_ODDS = 3.0
"""By how much the log odds that anything answers fall for all of its words; in proportion for some of them."""
GATED_AT_ONCE = 64
"""Blocks whose KV states are fetched together for the gate on the backbone."""


class Gate(Protocol):
    """Says how relevant blocks are to one question, given what is known so far."""

    @property
    def threshold(self) -> float:
        """Score below which a block is rejected."""
        ...

    @property
    def needs_requery(self) -> bool:
        """Whether candidates and scores must be computed again with each new memory; known after the first pass."""
        ...

    @property
    def answerable(self) -> bool:
        """Whether any of the first candidates may answer; known once they are scored."""
        ...

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The score of each block, given the working memory."""
        ...


class NoGate:
    """Lets every block pass."""

    threshold = 0.0
    needs_requery = True
    answerable = True

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """1 for each block."""
        return [1.0] * len(blocks)


class SimilarityGate(NoGate):
    """Cosine of the question and the vector of the whole chunk, as plain vector search."""

    def __init__(self, blocks: BlockLoader, analyzer: QueryAnalyzer) -> None:
        self._blocks = blocks
        self._analyzer = analyzer

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The cosine of each block, at least 0."""
        if not blocks:
            return []
        cosines = self._blocks.vectors(blocks) @ self._analyzer.analyze("").question
        return [float(cosine) for cosine in np.clip(cosines, 0.0, 1.0)]


class DenseGate:
    """The trained gate over vectors, words and names.

    It scores the first candidates once. Later, with a working memory, it scores again and sees its first scores.

    Args:
        head: The networks.
        blocks: The question's blocks.
        generator: Proposes candidates for the question.
        open_ended: New blocks may come with each step, so the first candidates never suffice.
    """

    def __init__(
        self, head: GateHead, blocks: BlockLoader, generator: CandidateGenerator, *, open_ended: bool = False
    ) -> None:
        self._head = head
        self._blocks = blocks
        self._generator = generator
        self._open_ended = open_ended
        self._first_pass: FirstPass | None = None
        self._first: dict[int, float] = {}

    @property
    def threshold(self) -> float:
        """The threshold that was fitted with the gate."""
        return self._head.threshold

    @property
    def needs_requery(self) -> bool:
        """Whether the first candidates leave something to find; fewer than `FEW_CANDIDATES` always do."""
        if self._open_ended or self._first_pass is None or len(self._first) < FEW_CANDIDATES:
            return True
        return self._first_pass.more >= self._head.more_threshold

    @property
    def answerable(self) -> bool:
        """Whether any of the first candidates may answer.

        The trained network must be the surer, the more words of the question no block has: its features are about
        words that blocks have. None does if the question's codes are in none of them.
        """
        if self._first_pass is None:
            return True
        if self._open_ended:  # other blocks may have the words
            return self._first_pass.found >= self._head.found_threshold
        unknown = self._unknown_share()
        odds = _log_odds(self._first_pass.found) - _UNKNOWN_ODDS * unknown
        if odds < _log_odds(self._head.found_threshold) or unknown >= _MIN_UNKNOWN_SHARE:
            return False
        return not only_unknown_codes(self._generator.analyzer.question, self._texts())

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The probability of each block that the question needs it."""
        if not blocks:
            return []
        own, rows = window_features(self._blocks, self._generator.analyzer, memory, blocks)
        known = np.array([n in self._first for n in blocks])
        if not memory or not known.any():
            look = self._head.first_pass(own, self._generator.search_ranks(blocks).take(rows), rows)
            if not self._first:
                self._first_pass = look
            self._first.update(zip(blocks, look.logits.tolist(), strict=True))
            return [float(p) for p in look.probabilities]
        looked = list(self._first.values())
        lowest = min(looked)
        first = np.array([*looked, *(self._first.get(n, lowest) for n in blocks)], dtype=np.float32)
        return [float(p) for p in self._head.later_pass(own, first, known, rows)]

    def _unknown_share(self) -> float:
        windows = [window for own in self._blocks.windows(list(self._first)) for window in own]
        return unknown_share(self._generator.analyzer.analyze(""), windows)

    def _texts(self) -> Iterator[str]:
        """What the candidates say, with their titles, headings and contexts."""
        for block in self._blocks.get(list(self._first)):
            yield from (block.chunk.label, block.chunk.context, block.chunk.text)


def _log_odds(probability: float) -> float:
    return math.log(max(probability, 1e-6) / max(1 - probability, 1e-6))


class KVGate:
    """The trained gate on the backbone, which reads the KV states of blocks."""

    needs_requery = True
    answerable = True

    def __init__(self, gate: BackboneGate, blocks: BlockLoader, kv_cache: KVCache) -> None:
        self._gate = gate
        self._blocks = blocks
        self._kv_cache = kv_cache

    @property
    def threshold(self) -> float:
        """The threshold of the checkpoint."""
        return self._gate.threshold

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The probability of each block that it helps."""
        with torch.inference_mode():
            groups = self._kv_cache.stream(blocks, self._blocks.source.kv_states, size=GATED_AT_ONCE)
            return [p for states in groups for p in self._gate.probabilities(memory, states)]


def make_gate(config: LoopConfig, trained: Gate, blocks: BlockLoader, generator: CandidateGenerator | None) -> Gate:
    """The gate that the settings name.

    Raises:
        ValueError: `gate="similarity"`, and the index has no vectors.
    """
    if config.gate == "off":
        return NoGate()
    if config.gate == "similarity":
        if generator is None:
            raise ValueError("gate='similarity' needs vectors, and this index was made with encoder=None")
        return SimilarityGate(blocks, generator.analyzer)
    return trained


def window_features(
    loader: BlockLoader, analyzer: QueryAnalyzer, memory: str, blocks: Sequence[int]
) -> tuple[Vectors, NDArray[np.int64]]:
    """Features of each window of these blocks, `[windows, len(FEATURES)]`, and the block of each, from 0."""
    windows = loader.windows(blocks)
    rows = np.repeat(np.arange(len(blocks)), [len(own) for own in windows])
    return features(analyzer.analyze(memory), [window for own in windows for window in own]), rows
