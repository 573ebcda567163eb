"""Blocks fitted into a prompt of so many tokens: all of them in several prompts, or the best of them in one."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from compmem.text.sentences import sentences
from compmem.text.tokenize import terms

Count = Callable[[str], int]
"""Tokens of a text."""

CHARS_PER_TOKEN: Final = 16
"""Characters of a text per token from which it counts as too long without being counted."""

LEAST: Final = 48
"""Tokens that a part of a block must have to be worth showing."""

MARK: Final = "**"
"""Stands before and behind a sentence that was found to bear on the question."""

_SAID: Final = re.compile(r"\S")
_BORDER: Final = re.compile(r"[.!?。！？\n]\s")


@dataclass(frozen=True, slots=True)
class Shown:
    """A block as it stands in a prompt, parted around its text so that the text can be cut."""

    before: str
    text: str
    after: str
    marked: tuple[str, ...] = ()
    """Sentences of the text to mark, in their order."""

    def __str__(self) -> str:
        return f"{self.before}{self.text}{self.after}"

    def with_marks(self) -> str:
        """The block with those of its sentences marked that are left of it."""
        parts, at = [self.before], 0
        for sentence in self.marked:
            start = self.text.find(sentence, at)
            if start >= 0 and sentence:
                parts += [self.text[at:start], MARK, sentence, MARK]
                at = start + len(sentence)
        return "".join([*parts, self.text[at:], self.after])


def packed(blocks: Sequence[Shown], budget: int, count: Count) -> list[list[Shown]]:
    """The blocks in groups of at most `budget` tokens, in order; one that is longer goes in parts into several."""
    groups: list[list[Shown]] = []
    group: list[Shown] = []
    left = budget
    for block in (_with_short_frame(b, budget, count) for b in blocks):
        space = max(1, budget - _frame(block, count))
        text, at = block.text, 0
        while rest := _SAID.search(text, at):
            at = rest.start()
            ahead = text[at : at + budget * CHARS_PER_TOKEN + 1]  # more cannot go into this prompt
            part = replace(block, text=ahead)
            if at + len(ahead) == len(text) and _fits(str(part), left, count):
                group.append(part)
                left -= count(str(part))
                break
            if group:
                groups.append(group)
                group, left = [], budget
                continue
            end = beginning(ahead, space, count)
            groups.append([replace(block, text=ahead[:end].rstrip())])
            at += end
    return [*groups, group] if group else groups


def fitted(blocks: Sequence[Shown], budget: int, asked: Mapping[str, float], count: Count) -> list[Shown]:
    """What of the blocks goes into `budget` tokens, the first ones whole if they can be.

    A block that is too long is cut to the run of its sentences that holds most of the terms asked for, by their
    weights; where others wait behind it, they have half of what is left.
    """
    kept: list[Shown] = []
    left = budget
    for number, block in enumerate(blocks):
        block = _with_short_frame(block, left, count)
        if not _fits(str(block), left, count):
            share = left // 2 if number + 1 < len(blocks) else left
            space = share - _frame(block, count)
            if space < LEAST:
                continue
            block = replace(block, text=_telling_part(block.text, space, asked, count))
        kept.append(block)
        left -= count(str(block))
    return kept


def beginning(text: str, limit: int, count: Count) -> int:
    """Where the longest beginning of at most `limit` tokens ends, behind a sentence or a word where one ends near."""
    end = min(len(text), limit * CHARS_PER_TOKEN)
    if count(text[:end]) > limit:
        low, high = 1, end
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if count(text[:middle]) <= limit else (low, middle - 1)
        end = low
    if end == len(text):
        return end
    borders = [match.end() for match in _BORDER.finditer(text, end // 2, end)]
    blank = max(text.rfind(" ", end // 2, end), text.rfind("\n", end // 2, end)) + 1
    return borders[-1] if borders else blank or end


def _telling_part(text: str, limit: int, asked: Mapping[str, float], count: Count) -> str:
    """The run of sentences within `limit` tokens that holds most of the terms asked for, the earliest of equals.

    A term counts the less, the more sentences of the text hold it.
    """
    spans = sentences(text)
    costs = [count(text[a:b]) + 1 for a, b in spans]
    held = [{t for t in terms(text[a:b]) if t in asked} for a, b in spans]
    frequency = Counter(t for own in held for t in own)
    gains = [sum(asked[t] / frequency[t] for t in own) for own in held]
    best, gain = -1.0, 0.0
    at = first = cost = 0
    for last, (own, found) in enumerate(zip(costs, gains, strict=True)):
        cost, gain = cost + own, gain + found
        while cost > limit and first < last:
            cost, gain, first = cost - costs[first], gain - gains[first], first + 1
        if gain > best + 1e-9:
            best, at = gain, spans[first][0]
    return text[at : at + beginning(text[at:], limit, count)].rstrip()


def _with_short_frame(block: Shown, budget: int, count: Count) -> Shown:
    """The block; what stands above its text is cut where it takes more than half of the budget."""
    if _fits(block.before, budget // 2, count):
        return block
    return replace(block, before=block.before[: beginning(block.before, max(1, budget // 2), count)].rstrip() + "\n")


def _frame(block: Shown, count: Count) -> int:
    return count(f"{block.before}{block.after}") + 1


def _fits(text: str, limit: int, count: Count) -> bool:
    return len(text) <= max(limit, 0) * CHARS_PER_TOKEN and count(text) <= limit
