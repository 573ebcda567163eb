"""The gate on the backbone: a block's KV states read behind a question and a working memory (2602.08382).

The paper writes P = sigmoid(W h_last(Q, m, theta)) and leaves the order of the three open. Here question and memory
come first: their states are made once a step, and each block costs a probe of a few tokens instead of a whole prompt.
"""

from collections.abc import Sequence
from typing import Final

import torch

from compmem.backbone import Backbone, Prompt
from compmem.schema import KVStates

PROMPT: Final = """\
<question>
{question}
</question>

Notes so far:
<memory>
{memory}
</memory>

Does the part below hold something that helps to answer the question, alone or together with the notes?

{block}
Helps:"""
"""Question and notes stand before the block: what the backbone makes of them serves every block."""

NO_NOTES: Final = "(none yet)"


class BackboneGate:
    """P = sigmoid(W h) for one question: h is the last hidden state of (question, working memory, block).

    Args:
        backbone: One with a trained gate head.
        question: What is asked.
        behind: Position of the question, for checkpoints that read blocks without rotating them. None: 0.

    Attributes:
        threshold: Below it a block is turned down.
    """

    def __init__(self, backbone: Backbone, question: str, *, behind: int | None = None) -> None:
        self.threshold = backbone.threshold
        self._backbone = backbone
        self._question = backbone.encode(question)
        self._prompt = gate_prompt(backbone)
        self._behind = behind

    def probabilities(self, memory: str, blocks: Sequence[KVStates]) -> list[float]:
        """The probability that each block holds what the question needs.

        Raises:
            ValueError: A block is of another backbone, or the prompt is larger than the context.
            MemoryError: One block alone does not fit on the device.
        """
        notes = self._backbone.encode(memory or NO_NOTES)
        asked, probe = self._prompt.around("block", question=self._question, memory=notes)
        scores = self._backbone.score([asked] * len(blocks), [[b] for b in blocks], probe, start=self._behind)
        probabilities: list[float] = torch.sigmoid(scores.float()).tolist()
        return probabilities


def gate_prompt(backbone: Backbone) -> Prompt:
    """What the gate reads, with gaps for question, memory and block."""
    return backbone.prompt(PROMPT)
