"""The gate on the backbone: a question and a working memory read behind a block's KV states (2602.08382)."""

from collections.abc import Sequence
from typing import Final

import torch

from compmem.backbone import Backbone
from compmem.schema import KVStates

PROMPT: Final = """\
<question>
{question}
</question>

Notes so far:
<memory>
{memory}
</memory>

Does the text above hold something that helps to answer the question, alone or together with the notes?"""
"""What is read behind a block; the gate's head sees its last token."""

NO_NOTES: Final = "(none yet)"


class LatentGate:
    """P = sigmoid(W h) for one question: h is the last hidden state of (block, question, working memory).

    Args:
        backbone: One with a trained gate head.
        question: What is asked.
        behind: Position of the prompts. None: right behind each block.
    """

    threshold = 0.5
    """Below it a block is turned down."""

    def __init__(self, backbone: Backbone, question: str, *, behind: int | None = None) -> None:
        self._backbone = backbone
        self._question = backbone.encode(question)
        self._prompt = backbone.prompt(PROMPT)
        self._behind = behind

    def probabilities(self, memory: str, blocks: Sequence[KVStates]) -> list[float]:
        """The probability that each block holds what the question needs.

        Raises:
            ValueError: A block is of another backbone, or the prompt is larger than the context.
            MemoryError: One block alone does not fit on the device.
        """
        prompt = self._prompt.fill(question=self._question, memory=self._backbone.encode(memory or NO_NOTES))
        scores = self._backbone.score([prompt] * len(blocks), [[b] for b in blocks], start=self._behind)
        return [float(p) for p in torch.sigmoid(scores.float())]
