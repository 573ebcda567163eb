"""How much of a question is in words that no memory block has: then its subject is probably not in the index."""

import re
from collections.abc import Iterator, Sequence
from typing import Final

from compmem.gate.blocks import ParsedBlock
from compmem.retrieval.query import QueryState

_MIN_WORD_LETTERS, _MAX_WORD_LETTERS = 5, 40
"""Letters of a word that is taken for another one, mistyped, if the two differ by one letter."""
_ENGLISH = 0.25
"""Share of blocks with "the" from which an index is in English."""
_CODE: Final = re.compile(r"[a-z]{1,8}\d{3,20}|\d{5,20}(?<!000)")
"""A part number, an account or the like; shorter and round numbers are amounts and years."""


def unknown_share(state: QueryState, blocks: Sequence[ParsedBlock]) -> float:
    """Weighted share of the question's words that no block has; an unknown word weighs as much as the rarest word.

    0 if the question or most blocks are not in English: in another language the same thing has other words. Half as
    much if blocks have all names of the question, or a code of it: they may say the rest in other words. A word that
    differs from one of these blocks by one letter is mistyped, not unknown.

    Args:
        state: The question without a working memory.
        blocks: The candidates.
    """
    if not state.unknown or sum("the" in block.counts for block in blocks) < _ENGLISH * len(blocks):
        return 0.0
    known = {word for block in blocks for text in (block.text, *block.titles) for word in text.split()}
    known_forms = {one for word in known for one in _without_a_letter(word, state.unknown)}
    unknown = [word for word in state.unknown if known_forms.isdisjoint(_without_a_letter(word, [word]))]
    names = {word for name in state.capitalised for word in name.split()}
    has_names = bool(names) and names.isdisjoint(unknown)
    has_code = any(_CODE.fullmatch(word) for word in known & state.weights.keys())
    return len(unknown) / (len(unknown) + sum(state.weights.values()) or 1.0) / (2 if has_names or has_code else 1)


def _without_a_letter(word: str, near: Sequence[str]) -> Iterator[str]:
    """The word and all forms with one letter removed, if a word of `near` has the same first letter and similar length.

    Two words that differ by one letter, or by two that changed places, have one of these forms in common.
    """
    if not _MIN_WORD_LETTERS <= len(word) <= _MAX_WORD_LETTERS or not word.isalpha():
        return
    if any(word[0] == other[0] and abs(len(word) - len(other)) <= 1 for other in near):
        yield word
        yield from (word[:at] + word[at + 1 :] for at in range(len(word)))
