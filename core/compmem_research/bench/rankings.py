"""Rankings by the question alone: the input of one-shot RAG, and the baselines of the loop."""

from collections.abc import Callable

import numpy as np

from compmem.loop.context import QuestionContext
from compmem.retrieval.ranking import reciprocal_rank_fusion

FUSED_OF = 100
"""Top blocks of each ranking that are fused."""

Rank = Callable[[QuestionContext, int], list[int]]
"""Numbers of the k best blocks for a question, best first."""


def dense(context: QuestionContext, k: int) -> list[int]:
    """The nearest blocks by the vector of the whole block."""
    return context.required_generator.nearest(k)


def bm25(context: QuestionContext, k: int) -> list[int]:
    """The best blocks by BM25."""
    return [n for n, _ in context.required_generator.bm25(k)]


def fused(context: QuestionContext, k: int) -> list[int]:
    """Both, by reciprocal-rank fusion of the first hundred of each."""
    return list(reciprocal_rank_fusion([dense(context, FUSED_OF), bm25(context, FUSED_OF)]))[:k]


def by_sentence(context: QuestionContext, k: int) -> list[int]:
    """Blocks ranked by their most similar sentence, over every sentence of every block."""
    asked = context.analyzer.analyze("").question
    numbers = [int(n) for n in context.snapshot.select(None)]
    nearest = [
        float((block.vectors[1:] @ asked).max())
        for block in context.snapshot.blocks(numbers, kv=False)
        if block.vectors is not None and len(block.vectors) > 1
    ]
    return [numbers[i] for i in np.argsort(-np.asarray(nearest), kind="stable")[:k]]
