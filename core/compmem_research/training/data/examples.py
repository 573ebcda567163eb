"""Training rows: blocks read as memory, the tokens after them, and the tokens that are learned.

All supervised data has this form: plain text (no block, all tokens learned), reconstruction (the block's own tokens
after it), questions (only the answers), a step of the loop (only the structured reply).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from compmem.backbone import Backbone, Blocks, Role, memory_token_count
from compmem.schema import KVStates
from compmem_research.training.engine.device import precision

Ids = Sequence[int]

BUCKET_TOKENS = 64
"""Largest difference in tokens, in memory and after it, between rows of one batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One row."""

    part: str
    """Its part of the loss."""
    blocks: tuple[Ids, ...] = ()
    """Chunks that are compressed separately and precede the tokens."""
    ids: Ids
    spans: tuple[tuple[int, int], ...]
    """Spans `(start, end)` of `ids` that are learned; none contains the first token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """The rows of one micro-batch."""

    examples: Sequence[Example]
    ratio: int
    counts: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0

    @classmethod
    def of(cls, examples: Iterable[Example], ratio: int) -> "Rows":
        """These rows, with the normaliser of each loss part and metric."""
        kept, counts = list(examples), dict[str, float]()
        for example in kept:
            learned = sum(end - start for start, end in example.spans)
            for name, count in zip(figures_of(example.part), (learned, learned, len(example.spans)), strict=True):
                counts[name] = counts.get(name, 0.0) + count
        chunks = {tuple(block) for e in kept for block in e.blocks}
        inside = sum(len(chunk) + memory_token_count(len(chunk), ratio) for chunk in chunks)
        return cls(examples=kept, ratio=ratio, counts=counts, tokens=inside + sum(len(e.ids) for e in kept))


def figures_of(part: str) -> tuple[str, str, str]:
    """Names of a part's loss, token accuracy, and span accuracy.

    A span is right if greedy decoding would write all of its tokens.
    """
    return part, f"accuracy_{part}", f"exact_{part}"


def row_losses(
    backbone: Backbone, rows: Rows, *, role: Role | None = "reasoner", distill: float = 0.0
) -> dict[str, Tensor]:
    """Loss of the learned tokens, right tokens and right spans, summed by part; with gradients.

    The loss is the cross-entropy. In rows behind memory, the share `distill` of it is replaced by the divergence from
    what the same model says behind the text itself (self-distillation, as in 2503.10337).
    """
    memory = recalled(backbone, rows.examples, rows.ratio)
    groups: dict[tuple[str, int, int], list[int]] = {}
    for number, example in enumerate(rows.examples):
        # Similar lengths need little padding, but each group is a forward pass, and many small ones cost more.
        slots = sum(states.slots for states in memory[number])
        key = (example.part, -(-slots // BUCKET_TOKENS), len(example.ids) // BUCKET_TOKENS)
        groups.setdefault(key, []).append(number)
    sums: dict[str, Tensor] = {}
    for (part, slots, _), numbers in groups.items():
        behind = [memory[n] for n in numbers] if slots else None
        values = _group(backbone, [rows.examples[n] for n in numbers], behind, role, distill)
        for name, value in zip(figures_of(part), values, strict=True):
            sums[name] = sums[name] + value if name in sums else value
    return sums


def _group(
    backbone: Backbone, examples: Sequence[Example], memory: Blocks | None, role: Role | None, distill: float
) -> tuple[Tensor, ...]:  # fmt: skip
    """Loss, right tokens and right spans of rows in one batch."""
    logits, wanted, which = _learned(backbone, examples, memory, role)
    right = logits.detach().argmax(-1) == wanted
    wrong_spans = torch.zeros(int(which.max()) + 1, device=which.device).index_add_(0, which, (~right).float())
    loss = F.cross_entropy(logits, wanted, reduction="sum")
    if distill and memory is not None:
        with torch.no_grad():
            behind_text = _learned(backbone, [as_text(backbone, e) for e in examples], None, role)[0].log_softmax(-1)
        apart = F.kl_div(logits.log_softmax(-1), behind_text, reduction="sum", log_target=True)
        loss = (1 - distill) * loss + distill * apart
    return loss, right.sum(), (wrong_spans == 0).sum()


def as_text(backbone: Backbone, example: Example) -> Example:
    """The row with its blocks as plain tokens, where their states are read."""
    lead = backbone.chat_prefix_ids
    begun = len(lead) if list(example.ids[: len(lead)]) == lead else 0
    text = [*(() if begun else lead), *(i for block in example.blocks for i in block)]
    spans = tuple((start + len(text), end + len(text)) for start, end in example.spans)
    return replace(example, blocks=(), ids=[*example.ids[:begun], *text, *example.ids[begun:]], spans=spans)


def _learned(
    backbone: Backbone, examples: Sequence[Example], memory: Blocks | None, role: Role | None
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Logits before each learned token, the token, and the number of its span."""
    hidden = backbone.read([e.ids[:-1] for e in examples], memory, role=role)
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
    return logits.to(torch.promote_types(logits.dtype, torch.float32)), wanted, which


def recalled(backbone: Backbone, examples: Sequence[Example], ratio: int) -> list[list[KVStates]]:
    """The memory of each row's blocks; shared blocks are compressed once."""
    chunks = list(dict.fromkeys(tuple(block) for e in examples for block in e.blocks))
    states = dict(zip(chunks, backbone.compress(chunks, ratio=ratio), strict=True)) if chunks else {}
    return [[states[tuple(block)] for block in e.blocks] for e in examples]


def written_exactly(
    backbone: Backbone, examples: Sequence[Example], ratio: int, *, role: Role | None = "reasoner"
) -> float:
    """Share of rows whose last span is reproduced exactly by greedy decoding."""
    prompts = [list(e.ids[: e.spans[-1][0]]) for e in examples]
    wanted = [list(e.ids[slice(*e.spans[-1])]) for e in examples]
    with torch.no_grad(), precision(backbone):
        memory = recalled(backbone, examples, ratio)
        written = backbone.generate(prompts, memory, max_new_tokens=max(map(len, wanted)), role=role)
    return sum(w == _unended(g, backbone) for w, g in zip(written, wanted, strict=True)) / len(examples)


def _unended(ids: list[int], backbone: Backbone) -> list[int]:
    """Without the end token, which decoding leaves out."""
    return ids[:-1] if ids and ids[-1] in backbone.end_ids else ids
