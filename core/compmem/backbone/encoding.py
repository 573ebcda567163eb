"""Text as token ids and back: what is spelled like a control token in a text from outside stays text."""

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
        """Token ids of a text from outside, nothing added: no control token or tag of the tokenizer's own is in them.

        One that is spelled in the text stays the letters that it is, whether the tokenizer calls it special or not.
        """
        return self._cut_at(self._added, text)

    def encode_reply(self, text: str) -> list[int]:
        """Token ids of a reply that the model should write: tags that are tokens of their own are that."""
        return self._cut_at(self._control, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def prompt(self, text: str, *, thinking: bool = False) -> Prompt:
        """A user turn with gaps, in the tokenizer's chat template."""
        return Prompt(text, self.tokenizer, thinking=thinking)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The ids that end a text: the generation config's, and the tokenizer's end token."""
        configured = self.model.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return tuple(sorted({i for i in (*ids, self.tokenizer.eos_token_id) if i is not None}))

    def _cut_at(self, tokens: re.Pattern[str], text: str) -> list[int]:
        """Token ids of a text that is cut within everything that the pattern finds."""
        cuts = [0, *(found.start() + 1 for found in tokens.finditer(text)), len(text)]
        return [i for a, b in pairwise(cuts) for i in self.tokenizer.encode(text[a:b], add_special_tokens=False)]


def _control_tokens(tokenizer: Any, *, special: bool) -> re.Pattern[str]:
    """What finds a tokenizer's control tokens in a text: the special ones, or all that are added and no plain words."""
    added = {str(token): bool(token.special) for token in tokenizer.added_tokens_decoder.values()}
    taken = {text for text, own in added.items() if own or not (special or text.strip().isalnum() or text.isspace())}
    spelled = sorted({t for t in (*taken, *tokenizer.all_special_tokens) if len(t) > 1}, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spelled)) or r"(?!)")
