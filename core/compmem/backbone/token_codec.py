"""Text as token ids and back; control tokens spelled in untrusted text stay plain text."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from compmem.backbone.prompts import Prompt


class TokenCodec:
    """Encodes and decodes text for one causal LM."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self._control = _control_tokens(tokenizer, special=True)
        self._added = _control_tokens(tokenizer, special=False)

    def encode(self, text: str) -> list[int]:
        """Token ids of untrusted text, without special tokens and without control tokens or tags of the tokenizer.

        A control token that is spelled in the text is encoded as letters, whether or not the tokenizer calls it
        special.
        """
        return self._cut_at(self._added, text)

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a reply for the model to learn; tags that are single tokens are encoded as such."""
        return self._cut_at(self._control, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def prompt(self, text: str) -> Prompt:
        """A user turn with gaps to fill, in the tokenizer's chat template."""
        return Prompt(text, self.tokenizer)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text: those of the generation config, and the tokenizer's end token."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}))

    def _cut_at(self, tokens: re.Pattern[str], text: str) -> list[int]:
        """Token ids of a text that is split inside every match of the pattern."""
        cuts = [0, *(found.start() + 1 for found in tokens.finditer(text)), len(text)]
        return [i for a, b in pairwise(cuts) for i in self.tokenizer.encode(text[a:b], add_special_tokens=False)]


def _control_tokens(tokenizer: Any, *, special: bool) -> re.Pattern[str]:
    """A pattern for a tokenizer's control tokens: the special ones, or all added ones that are not plain words."""
    added = {str(token): bool(token.special) for token in tokenizer.added_tokens_decoder.values()}
    taken = {text for text, own in added.items() if own or not (special or text.strip().isalnum() or text.isspace())}
    spelled = sorted({t for t in (*taken, *tokenizer.all_special_tokens) if len(t) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spelled)) or r"(?!)")
