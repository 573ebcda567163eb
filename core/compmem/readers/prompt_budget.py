"""Fits blocks into a prompt with a token budget: all of them into several prompts, or the best into one."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from compmem.text.sentences import sentences
from compmem.text.tokenize import terms
from compmem.text.truncation import CHARS_PER_TOKEN, Count, beginning

MIN_PART_TOKENS: Final = 48
"""Minimum number of tokens of a part of a block that is shown."""

MARK: Final = "**"
"""Placed before and after a relevant sentence."""

_TEXT: Final = re.compile(r"\S")


@dataclass(frozen=True, slots=True)
class PromptBlock:
    """A block in a prompt, split into text and frame so that each can be cut."""

    before: str
    text: str
    after: str
    end: str = ""
    """Follows `after`; never cut."""
    marked: tuple[str, ...] = ()
    """Sentences of the text to mark, in order."""

    def __str__(self) -> str:
        return f"{self.before}{self.text}{self.after}{self.end}"

    def with_marks(self) -> str:
        """The block with its remaining sentences marked."""
        parts, at = [self.before], 0
        for sentence in self.marked:
            start = self.text.find(sentence, at)
            if start >= 0 and sentence:
                parts += [self.text[at:start], MARK, sentence, MARK]
                at = start + len(sentence)
        return "".join([*parts, self.text[at:], self.after, self.end])


def split_into_prompts(blocks: Sequence[PromptBlock], budget: int, count: Count) -> list[list[PromptBlock]]:
    """The blocks in groups of at most `budget` tokens, in order; a longer block is split over several groups."""
    groups: list[list[PromptBlock]] = []
    group: list[PromptBlock] = []
    left = budget
    for block in (_with_short_frame(b, budget, count) for b in blocks):
        space = max(1, budget - _frame(block, count))
        text, at = block.text, 0
        while rest := _TEXT.search(text, at):
            at = rest.start()
            ahead = text[at : at + budget * CHARS_PER_TOKEN + 1]  # more cannot fit into this prompt
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


def fit_into_prompt(
    blocks: Sequence[PromptBlock], budget: int, term_weights: Mapping[str, float], count: Count
) -> list[PromptBlock]:
    """The part of the blocks that fits into `budget` tokens, the first ones whole if possible.

    A block that is too long is cut to the run of its sentences with the highest weight of query terms; if more blocks
    follow, they get half of the remaining budget.
    """
    fitting: list[PromptBlock] = []
    left = budget
    for number, block in enumerate(blocks):
        block = _with_short_frame(block, left, count)
        if not _fits(str(block), left, count):
            share = left // 2 if number + 1 < len(blocks) else left
            space = share - _frame(block, count)
            if space < MIN_PART_TOKENS:
                continue
            block = replace(block, text=_best_passage(block.text, space, term_weights, count))
        fitting.append(block)
        left -= count(str(block))
    return fitting


def _best_passage(text: str, limit: int, term_weights: Mapping[str, float], count: Count) -> str:
    """The run of sentences within `limit` tokens with the highest weight of query terms, the earliest of equals.

    A term counts less if more sentences of the text contain it.
    """
    spans = sentences(text)
    costs = [count(text[a:b]) + 1 for a, b in spans]
    held = [{t for t in terms(text[a:b]) if t in term_weights} for a, b in spans]
    frequency = Counter(t for own in held for t in own)
    gains = [sum(term_weights[t] / frequency[t] for t in own) for own in held]
    best, gain = -1.0, 0.0
    at = first = cost = 0
    for last, (own, found) in enumerate(zip(costs, gains, strict=True)):
        cost, gain = cost + own, gain + found
        while cost > limit and first < last:
            cost, gain, first = cost - costs[first], gain - gains[first], first + 1
        if gain > best + 1e-9:
            best, at = gain, spans[first][0]
    return text[at : at + beginning(text[at:], limit, count)].rstrip()


def _with_short_frame(block: PromptBlock, budget: int, count: Count) -> PromptBlock:
    """The block, with what stands before and after its text cut if that takes more than half of the budget."""
    share = budget // 2
    if not _fits(block.before, share, count):
        block = replace(block, before=block.before[: beginning(block.before, max(1, share), count)].rstrip() + "\n")
    share -= count(block.before)
    if not _fits(block.after, share, count):
        block = replace(block, after=block.after[: beginning(block.after, share, count)].rstrip() if share > 0 else "")
    return block


def _frame(block: PromptBlock, count: Count) -> int:
    return count(f"{block.before}{block.after}{block.end}") + 1


def _fits(text: str, limit: int, count: Count) -> bool:
    return len(text) <= max(limit, 0) * CHARS_PER_TOKEN and count(text) <= limit
