"""The gate on the backbone: a block's KV states, read after a question and a working memory (2602.08382).

The paper writes P = sigmoid(W h_last(Q, m, theta)) and does not fix the order of the three. Here question and memory
come first: their states are computed once per step, and each block costs a probe of a few tokens instead of a whole
prompt.
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
"""Question and notes come before the block, so their states are shared by all blocks."""

NO_NOTES: Final = "(none yet)"


class BackboneGate:
    """P = sigmoid(W h) for one question: h is the last hidden state of (question, working memory, block).

    Args:
        backbone: A backbone with a trained gate head.
        question: The question.
        behind: Position of the question, for checkpoints that read blocks without rotation. None: 0.

    Attributes:
        threshold: Blocks with a lower probability are rejected.
    """

    def __init__(self, backbone: Backbone, question: str, *, behind: int | None = None) -> None:
        self.threshold = backbone.threshold
        self._backbone = backbone
        self._question = backbone.encode(question)
        self._prompt = gate_prompt(backbone)
        self._behind = behind

    def probabilities(self, memory: str, blocks: Sequence[KVStates]) -> list[float]:
        """The probability that each block contains what the question needs.

        Raises:
            ValueError: A block was made by another backbone, or the prompt is longer than the context.
            MemoryError: A single block does not fit on the device.
        """
        notes = self._backbone.encode(memory or NO_NOTES)
        asked, probe = self._prompt.around("block", question=self._question, memory=notes)
        scores = self._backbone.score([asked] * len(blocks), [[b] for b in blocks], probe, start=self._behind)
        probabilities: list[float] = torch.sigmoid(scores.float()).tolist()
        return probabilities


def gate_prompt(backbone: Backbone) -> Prompt:
    """The gate's prompt, with gaps for question, memory and block."""
    return backbone.prompt(PROMPT)
