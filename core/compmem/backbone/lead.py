"""What stands in front of the text that a stock model reads: the head of a chat turn, before what the user says."""

from collections.abc import Sequence
from typing import Any

from compmem.backbone.decoder import Decoder
from compmem.backbone.prompts import head
from compmem.backbone.prune import prune
from compmem.backbone.rotary import Rotary
from compmem.schema import KVStates

Rows = Sequence[Sequence[KVStates]]


class Lead:
    """The head of a turn: chunks are compressed behind it, and blocks are read behind it again, once for all of them.

    Attributes:
        ids: Its token ids; none where there is no chat template and texts begin with no token of their own.
    """

    def __init__(self, tokenizer: Any, decoder: Decoder, rotary: Rotary) -> None:
        self.ids = head(tokenizer)
        self._decoder = decoder
        self._rotary = rotary
        self._states: KVStates | None = None

    def before(self, prompts: Sequence[Sequence[int]], blocks: Rows) -> tuple[Sequence[Sequence[int]], Rows]:
        """Prompts without the head and blocks with it in front; rows without blocks as they are."""
        if not self.ids or not any(blocks):
            return prompts, blocks
        if self._states is None:
            [self._states] = prune(self._decoder, self._rotary, [self.ids], ratio=1)
        led = [self._without(prompt) if row else prompt for prompt, row in zip(prompts, blocks, strict=True)]
        return led, [[self._states, *row] if row else row for row in blocks]

    def forget(self) -> None:
        """Give its states back."""
        self._states = None

    def _without(self, prompt: Sequence[int]) -> Sequence[int]:
        count = len(self.ids)
        return prompt[count:] if count < len(prompt) and list(prompt[:count]) == self.ids else prompt
