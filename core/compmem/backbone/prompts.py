"""Prompts as token ids with gaps to fill. Text that is carried between steps is never decoded and encoded again."""

import logging
import re
from collections.abc import Sequence
from typing import Any

log = logging.getLogger(__name__)

_MESSAGE = "{message}"
GAP = re.compile(r"\{([a-z_]+)\}", re.IGNORECASE)
"""A gap of a prompt; its first group is the name."""


class Prompt:
    """One user turn with named gaps `{name}`; the text between the gaps is tokenised in pieces.

    Without a chat template, the prompt is the plain text.
    """

    def __init__(self, text: str, tokenizer: Any) -> None:
        parts = GAP.split(_as_turn(text, tokenizer))
        self.gaps = tuple(parts[1::2])
        self._pieces = [list(tokenizer.encode(part, add_special_tokens=False)) for part in parts[::2]]

    def __len__(self) -> int:
        """Tokens of the prompt with empty gaps."""
        return sum(map(len, self._pieces))

    def around(self, gap: str, **ids: Sequence[int]) -> tuple[list[int], list[int]]:
        """The token ids before and after one gap, with the other gaps filled.

        Raises:
            ValueError: A gap is missing or unknown.
        """
        if gap not in self.gaps:
            raise ValueError(f"the prompt has the gaps {sorted(set(self.gaps))}, not {gap!r}")
        if set(ids) != set(self.gaps) - {gap}:
            raise ValueError(f"the prompt has the gaps {sorted(set(self.gaps) - {gap})} besides, not {sorted(ids)}")
        halves: tuple[list[int], list[int]] = (list(self._pieces[0]), [])
        half = 0
        for name, piece in zip(self.gaps, self._pieces[1:], strict=True):
            if name == gap:
                half = 1
            halves[half].extend([*ids.get(name, ()), *piece])
        return halves

    def fill(self, **ids: Sequence[int]) -> list[int]:
        """The prompt's token ids with filled gaps.

        Raises:
            ValueError: A gap is missing or unknown.
        """
        if set(ids) != set(self.gaps):
            raise ValueError(f"the prompt has the gaps {sorted(set(self.gaps))}, not {sorted(ids)}")
        filled = list(self._pieces[0])
        for gap, piece in zip(self.gaps, self._pieces[1:], strict=True):
            filled += [*ids[gap], *piece]
        return filled


def chat_prefix_ids(tokenizer: Any) -> list[int]:
    """Token ids of a user turn before the user's text: the chat template's prefix, or the first token of a text."""
    ids: list[int] = tokenizer.encode(_turn(tokenizer).partition(_MESSAGE)[0], add_special_tokens=False)
    return ids


def _as_turn(text: str, tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        log.warning("tokenizer of %r has no chat template: prompts are given as plain text", tokenizer.name_or_path)
    # The text is inserted afterwards, since some templates strip their input.
    return _turn(tokenizer).replace(_MESSAGE, text)


def _turn(tokenizer: Any) -> str:
    if not tokenizer.chat_template:
        return f"{tokenizer.bos_token or ''}{_MESSAGE}"
    turn: str = tokenizer.apply_chat_template(
        [{"role": "user", "content": _MESSAGE}], add_generation_prompt=True, tokenize=False, enable_thinking=False
    )
    return turn
