"""Rows to learn from: blocks read as memory, tokens behind them, and which of those tokens are learned.

Everything that is supervised is one of these: plain text (no block, all tokens learned), reconstruction (the block's
own tokens behind it), questions (the answers alone), a step of the loop (the structured reply alone).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from compmem.backbone import Backbone, Role
from compmem.training.running.device import precision

Ids = Sequence[int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row."""

    part: str
    """The part of the loss that it belongs to."""
    blocks: tuple[Ids, ...] = ()
    """Chunks that are compressed, each by itself, and stand left of the tokens."""
    ids: Ids
    spans: tuple[tuple[int, int], ...]
    """Runs `(start, end)` of `ids` that are learned, none from the very first token on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of one micro-batch."""

    examples: Sequence[Example]
    ratio: int
    counts: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0

    @classmethod
    def of(cls, examples: Iterable[Example], ratio: int) -> "Rows":
        """These rows, with what each loss part and figure is divided by."""
        kept, counts = list(examples), dict[str, float]()
        for example in kept:
            learned = sum(end - start for start, end in example.spans)
            for name, count in zip(figures_of(example.part), (learned, learned, len(example.spans)), strict=True):
                counts[name] = counts.get(name, 0.0) + count
        inside = sum(len(block) + -(-len(block) // ratio) for e in kept for block in e.blocks)
        return cls(examples=kept, ratio=ratio, counts=counts, tokens=inside + sum(len(e.ids) for e in kept))


def figures_of(part: str) -> tuple[str, str, str]:
    """Names of a part's loss, its share of right tokens, and its share of spans that are right to the last token.

    A span is right where the likeliest token is the right one all along: what greedy decoding would have written.
    """
    return part, f"accuracy_{part}", f"exact_{part}"


def row_losses(backbone: Backbone, rows: Rows, *, role: Role | None = "reasoner") -> dict[str, Tensor]:
    """Cross-entropy of the learned tokens, right tokens and right spans, summed by part; with gradients."""
    groups: dict[tuple[str, int, int], list[Example]] = {}
    for example in rows.examples:
        # Rows with as much memory need no mask, and rows of one length no padding.
        key = (example.part, sum(map(len, example.blocks)), len(example.ids) // 64)
        groups.setdefault(key, []).append(example)
    sums: dict[str, Tensor] = {}
    for (part, _, _), examples in groups.items():
        for name, value in zip(figures_of(part), _group(backbone, examples, rows.ratio, role), strict=True):
            sums[name] = sums[name] + value if name in sums else value
    return sums


def _group(backbone: Backbone, examples: Sequence[Example], ratio: int, role: Role | None) -> tuple[Tensor, ...]:
    """Loss, right tokens and right spans of rows that are run at once."""
    hidden = backbone.read([e.ids[:-1] for e in examples], recalled(backbone, examples, ratio), role=role)
    place, targets, spans = list[int](), list[int](), list[int]()
    count = 0
    for row, example in enumerate(examples):
        for start, end in example.spans:
            place += [row * hidden.shape[1] + at - 1 for at in range(start, end)]
            targets += example.ids[start:end]
            spans += [count] * (end - start)
            count += 1
    at, wanted, which = (torch.tensor(v, device=hidden.device) for v in (place, targets, spans))
    logits = backbone.logits(hidden.flatten(0, 1).index_select(0, at))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    right = logits.detach().argmax(-1) == wanted
    wrong_spans = torch.zeros(count, device=hidden.device).index_add_(0, which, (~right).float())
    return F.cross_entropy(logits, wanted, reduction="sum"), right.sum(), (wrong_spans == 0).sum()


def recalled(backbone: Backbone, examples: Sequence[Example], ratio: int) -> list[list[Any]] | None:
    """The memory of each row's blocks, or None where no row has any."""
    chunks = [block for e in examples for block in e.blocks]
    if not chunks:
        return None
    states = iter(backbone.compress(chunks, ratio=ratio))
    return [[next(states) for _ in e.blocks] for e in examples]


def written_exactly(
    backbone: Backbone, examples: Sequence[Example], ratio: int, *, role: Role | None = "reasoner"
) -> float:
    """Share of rows whose last span greedy decoding writes to the letter behind their memory."""
    prompts = [list(e.ids[: e.spans[-1][0]]) for e in examples]
    wanted = [list(e.ids[slice(*e.spans[-1])]) for e in examples]
    with torch.no_grad(), precision(backbone):
        memory = recalled(backbone, examples, ratio)
        written = backbone.generate(prompts, memory, max_new_tokens=max(map(len, wanted)), role=role)
    return sum(w == _unended(g, backbone) for w, g in zip(written, wanted, strict=True)) / len(examples)


def _unended(ids: list[int], backbone: Backbone) -> list[int]:
    """Without the end token, which decoding leaves out."""
    return ids[:-1] if ids and ids[-1] in backbone.end_ids else ids
