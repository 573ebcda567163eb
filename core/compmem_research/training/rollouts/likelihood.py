"""The policy's likelihood of earlier replies, with gradients through the recalled memory.

The chunks are compressed again, so the rewards also train the compressor (2602.08382, section 4: reasoning, recalled
KV, compressor). Turns are run in pieces with gradient checkpointing, so only the activations of one piece are in
memory. The reference for the divergence is a frozen copy of the policy.
"""

import copy
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.nn.parameter import Parameter
from torch.utils.checkpoint import checkpoint

from compmem.backbone import Backbone, BackboneComponents, Role
from compmem_research.training.rollouts.trajectory import Turn


def reply_likelihood(
    backbone: Backbone,
    turns: Sequence[Turn],
    *,
    ratio: int,
    piece_tokens: int,
    temperature: float = 1.0,
    role: Role | None = "reasoner",
    through_memory: bool = True,
) -> Tensor:
    """Log-probability of each reply token `[turns, longest reply]`, 0 after a reply's end.

    Args:
        backbone: The policy.
        turns: Prompts, replies and chunks.
        ratio: Compression ratio.
        piece_tokens: Most tokens that are run at once, with their activations.
        temperature: Temperature of the distribution that the replies were sampled from.
        role: The role whose adapter reads.
        through_memory: Whether gradients flow through the memory into the compressor.
    """
    width = max(len(turn.reply) for turn in turns)
    exact = torch.promote_types(backbone.decoder.embed_tokens.weight.dtype, torch.float32)
    made = torch.zeros(len(turns), width, dtype=exact, device=backbone.device)
    pieces = list(_pieces(turns, piece_tokens, ratio))
    for numbers in pieces:
        part = [turns[n] for n in numbers]

        def run(part: Sequence[Turn] = part) -> Tensor:
            return _piece(backbone, part, ratio, temperature, role, through_memory)

        again = len(pieces) > 1 and torch.is_grad_enabled()
        likely = (checkpoint(run, use_reentrant=False) if again else run()).to(exact)
        rows = torch.tensor(numbers, device=made.device)[:, None]
        made = made.index_put((rows, torch.arange(likely.shape[1], device=made.device)[None]), likely)
    return made


def frozen_copy(backbone: Backbone, trained: Collection[Parameter]) -> Backbone:
    """The current policy as a reference; it shares all weights that are not trained."""
    kept = {id(p) for p in trained}
    shared = {id(p): p for p in backbone.decoder.parameters() if id(p) not in kept}
    model, decoder = copy.deepcopy((backbone.model, backbone.decoder), shared)
    for parameter in decoder.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(False)
    components = BackboneComponents(
        model=model, tokenizer=backbone.tokenizer, decoder=decoder.eval(), memory=backbone.memory,
        adapters=backbone.adapters,
    )  # fmt: skip
    frozen = Backbone(components)
    if kept.isdisjoint(map(id, backbone.parameters("base").values())):
        frozen.use_scores_of(backbone)
    return frozen


def mask_of(turns: Sequence[Turn], device: torch.device) -> Tensor:
    """A mask of reply tokens, `[turns, longest reply]`."""
    lengths = torch.tensor([len(turn.reply) for turn in turns], device=device)
    return torch.arange(int(lengths.max()), device=device)[None] < lengths[:, None]


def run_tokens(turn: Turn, ratio: int) -> int:
    """Tokens of one turn in the decoder, with its chunks."""
    inside = sum(len(chunk) - (-len(chunk) // ratio) for chunk in turn.chunks)
    return inside + len(turn.prompt) + len(turn.reply)


def _pieces(turns: Sequence[Turn], budget: int, ratio: int) -> Iterator[list[int]]:
    """Numbers of turns, grouped by their chunks, as many at once as the budget allows."""
    order = sorted(range(len(turns)), key=lambda n: _size(turns[n]))
    piece: list[int] = []
    chunks: set[tuple[int, ...]] = set()
    longest = 0
    for number in order:
        turn = turns[number]
        mine = len(turn.prompt) + len(turn.reply) + sum(-(-len(chunk) // ratio) for chunk in turn.chunks)
        wide = max(longest, mine)
        own = set(map(tuple, turn.chunks))
        whole = chunks | own
        if piece and wide * (len(piece) + 1) + sum(map(len, whole)) > budget:
            yield piece
            piece, whole, wide = [], own, mine
        piece.append(number)
        chunks, longest = whole, wide
    yield piece


def _size(turn: Turn) -> tuple[object, ...]:
    return (sum(map(len, turn.chunks)), tuple(map(tuple, turn.chunks)), len(turn.prompt))


def _piece(
    backbone: Backbone, turns: Sequence[Turn], ratio: int, temperature: float, role: Role | None, through_memory: bool
) -> Tensor:
    """Log-probabilities of one piece, `[turns, longest reply]`, 0 after a reply's end."""
    chunks = list(dict.fromkeys(tuple(chunk) for turn in turns for chunk in turn.chunks))
    with torch.set_grad_enabled(through_memory and torch.is_grad_enabled()):
        states = dict(zip(chunks, backbone.compress(chunks, ratio=ratio), strict=True)) if chunks else {}
    blocks = [[states[tuple(chunk)] for chunk in turn.chunks] for turn in turns]
    hidden = backbone.read([[*turn.prompt, *turn.reply][:-1] for turn in turns], blocks, role=role)
    mask = mask_of(turns, hidden.device)
    first = torch.tensor([len(turn.prompt) - 1 for turn in turns], device=hidden.device)
    rows, columns = mask.nonzero(as_tuple=True)
    logits = backbone.logits(hidden[rows, first[rows] + columns])
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    wanted = torch.tensor([token for turn in turns for token in turn.reply], device=hidden.device)
    likely = -cross_entropy(logits, wanted, reduction="none")
    return likely.new_zeros(mask.shape).index_put((rows, columns), likely)
