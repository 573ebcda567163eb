"""The index for one question: candidates, gate scores and blocks, from one snapshot."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from compmem.config import LoopConfig, SearchMethod
from compmem.kv_cache import KVCache
from compmem.loop.blocks import BlockLoader, Blocks
from compmem.loop.gates import Gate, window_features
from compmem.readers.identifiers import MAX_SENTENCES, rare_identifiers
from compmem.retrieval.candidates import RANKED, CandidateGenerator
from compmem.retrieval.query import QueryAnalyzer
from compmem.retrieval.ranking import reciprocal_rank_fusion
from compmem.schema import MemoryBlock, Recall, Vectors, WorkingMemory
from compmem.text.tokenize import root, terms, words

MAX_IDENTIFIERS = 4
"""Maximum number of identifiers whose blocks are searched at once."""


@dataclass(frozen=True, slots=True)
class QuestionContext:
    """The index for one question, as the loop sees it.

    Without an encoder no candidates are proposed: every block that the filter admits is a candidate. Without an
    encoder and without a trained gate on the backbone, every candidate is accepted, in document order.
    """

    loader: BlockLoader
    """The blocks of the question."""
    config: LoopConfig
    admitted: NDArray[np.int64] | None
    """Numbers of the blocks that the filter admits; None if there is no filter."""
    count: Callable[[Sequence[str]], list[int]]
    """Counts tokens of texts."""
    candidate_generator: CandidateGenerator | None
    """Proposes candidates; None if the index has no encoder."""
    gate: Gate
    """Scores candidates."""
    kv_cache: KVCache | None = None
    """The cache of KV blocks; None for dense memory."""

    @property
    def snapshot(self) -> Blocks:
        """Source of the blocks."""
        return self.loader.source

    @property
    def required_generator(self) -> CandidateGenerator:
        """What proposes candidates.

        Raises:
            ValueError: The index was made without an encoder.
        """
        if self.candidate_generator is None:
            raise ValueError(
                "this index was made with encoder=None, so it has no vectors: use reader='latent' and gate='learned' "
                "or 'off', or make the index with an encoder"
            )
        return self.candidate_generator

    @property
    def analyzer(self) -> QueryAnalyzer:
        """The analysed question, for the dense gate and the extractive reader. Raises as `required_generator`."""
        return self.required_generator.analyzer

    @property
    def threshold(self) -> float:
        """Score below which a block is rejected: from the settings, else the gate's own."""
        return self.gate.threshold if self.config.threshold is None else self.config.threshold

    def propose(self, memory: str) -> list[int]:
        """Numbers of the blocks that may be relevant to the question, given the working memory."""
        if self.config.candidates == "all" or self.candidate_generator is None:
            return [int(n) for n in (self.snapshot.select(None) if self.admitted is None else self.admitted)]
        return self.candidate_generator.propose(memory)

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The gate score of each block, given the working memory."""
        return self.gate.score(memory, blocks)

    @property
    def needs_requery(self) -> bool:
        """Whether candidates and scores must be computed again with each new working memory."""
        return self.gate.needs_requery

    @property
    def answerable(self) -> bool:
        """Whether any of the first candidates may answer the question."""
        return self.gate.answerable

    def subjects(self, blocks: Sequence[int]) -> list[str]:
        """The title of each block, or the id of its document if it has none: parts of a text may be documents."""
        return [block.chunk.title or block.chunk.document_id for block in self.loader.get(blocks)]

    def lacks_words(self, memory: WorkingMemory) -> bool:
        """Whether there are notes, and they lack words of the question."""
        if self.candidate_generator is None or not memory.evidence:
            return False
        noted = {root(term) for term in terms(memory.text)}
        return any(root(term) not in noted for term in self.analyzer.question_terms)

    def linked(self, memory: WorkingMemory) -> list[int]:
        """Numbers of the blocks with a rare identifier of the best notes."""
        if self.candidate_generator is None:
            return []
        found = islice(rare_identifiers(memory.evidence, self.analyzer), MAX_IDENTIFIERS)
        runs = self.candidate_generator.lexical_index.phrases(
            [words(one, code_parts=False) for one in found], MAX_SENTENCES
        )
        return list(dict.fromkeys(n for run in runs for n in run))

    def fetch(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        """The blocks; for KV memory, with their states on the device."""
        found = self.loader.get(blocks)
        if self.kv_cache is None:
            return found
        states = self.kv_cache.get(blocks, self.snapshot.kv_states)
        return [replace(block, kv=kv) for block, kv in zip(found, states, strict=True)]

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, by the backbone's tokenizer for KV memory, else by the encoder's."""
        return self.count([text])[0]

    def search(self, method: SearchMethod, k: int) -> dict[int, float]:
        """The scores of at least the k best blocks of one pass, in any order; see `MemoryIndex.search`."""
        if method == "gate":
            proposed = self.propose("")
            return dict(zip(proposed, self.score("", proposed), strict=True))
        if method == "bm25":
            bm25 = self.required_generator.bm25(k)
            best = max((score for _, score in bm25), default=0.0) or 1.0
            return {n: score / best for n, score in bm25}
        near = self.required_generator.nearest(max(k, RANKED))
        if method == "hybrid":
            return reciprocal_rank_fusion([near, [n for n, _ in self.required_generator.bm25(max(k, RANKED))]])
        if not near:
            return {}
        cosines = self.loader.vectors(near[:k]) @ self.analyzer.analyze("").question
        return dict(zip(near[:k], np.clip(cosines, 0.0, 1.0).tolist(), strict=True))

    def best(self, scores: Mapping[int, float], k: int, min_score: float = 0.0) -> list[Recall]:
        """The k blocks with the highest scores, best first; fewer if fewer have at least `min_score`."""
        enough = [n for n, score in scores.items() if score >= min_score]
        numbers = sorted(enough, key=lambda n: (-scores[n], n))[:k]
        blocks = self.loader.get(numbers)
        return [Recall(chunk=b.chunk, score=scores[n], block=n) for n, b in zip(numbers, blocks, strict=True)]

    def window_features(self, memory: str, blocks: Sequence[int]) -> tuple[Vectors, NDArray[np.int64]]:
        """Features of each window of these blocks, `[windows, len(FEATURES)]`, and the block of each, from 0."""
        return window_features(self.loader, self.analyzer, memory, blocks)
