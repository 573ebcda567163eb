"""A backbone as a chat model, for systems that read text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from compmem.backbone import Backbone
from compmem.schema import Message


@dataclass(frozen=True, slots=True)
class BackboneChat:
    """A backbone as a chat model: plain text in one turn, without memory tokens and adapters."""

    backbone: Backbone
    most_tokens: int = 1280
    """Most tokens of a reply."""

    def __call__(self, messages: Sequence[Message]) -> str:
        """The reply.

        Raises:
            ValueError: The messages are longer than the backbone's context.
        """
        said = self.backbone.encode("\n\n".join(m["content"] for m in messages))
        prompt = self.backbone.prompt("{text}").fill(text=said)
        room = max(1, min(self.most_tokens, self.backbone.context - len(prompt)))
        with torch.inference_mode():
            [written] = self.backbone.generate([prompt], max_new_tokens=room, stop_on_repetition=True, role=None)
        return self.backbone.decode(written)
