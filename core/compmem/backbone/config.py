"""Settings of a backbone's memory: memory tokens and adapters. They are saved with its checkpoint."""

from dataclasses import dataclass
from typing import Literal, get_args

from compmem.checks import check_choices, check_integer
from compmem.config import KVPruning

Projection = Literal["q", "k", "v", "o"]
Linear = Literal["q", "k", "v", "o", "gate", "up", "down"]
Role = Literal["memory", "reasoner", "gate"]
Positions = Literal["rotated", "unrotated"]
States = Literal["inserted", "selected"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """How a chunk is compressed to the KV states of memory tokens, and their positions when they are read.

    Raises:
        ValueError: A value is out of its range.
    """

    trained: bool = True
    """Whether compression has its own weights. False: the most important KV states of the chunk's own tokens."""
    states: States = "inserted"
    """The states that stand for a chunk, if compression is trained.

    "inserted": those of memory tokens behind every `ratio` tokens. "selected": those of the chunk's own tokens that
    matter most, chosen as without training, while the memory adapter learns to gather the rest of the chunk in them
    (as KV-Distill, 2503.10337). Before training these are the states of `trained=False`, so there is less to learn on
    a pretrained model.
    """
    pruning: KVPruning = "attention"
    """How a chunk's own states are chosen above ratio 1, unless an index says otherwise. An index of trained memory
    may only choose between `kvzip-heads` and `kvzap`, which predicts it."""
    ratio: int = 4
    """Compression ratio: source tokens per memory token."""
    window: int = 2048
    """Source tokens compressed in one forward pass; the memory tokens of earlier windows stay in the context."""
    own: tuple[Projection, ...] = ("q", "k", "v")
    """The attention projections that memory tokens have their own copies of."""
    positions: Positions = "rotated"
    """Memory keys are rotated to positions from 0 when read, or not at all (as released with 2602.08382)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "own", tuple(self.own))
        check_choices(self)
        check_integer("ratio", self.ratio)
        check_integer("window", self.window)
        if self.states == "selected" and (self.own or self.positions != "rotated"):
            raise ValueError("states='selected' inserts no memory tokens: it needs own=() and positions='rotated'")
        if self.inserted and self.pruning != "attention":
            raise ValueError(f"pruning={self.pruning!r} needs states='selected': inserted states are all kept")
        if self.inserted and self.window % self.ratio:
            raise ValueError(f"window={self.window} must be a multiple of ratio={self.ratio}")
        if unknown := set(self.own) - set(get_args(Projection)):
            raise ValueError(f"own={self.own!r} has {sorted(unknown)!r}; the projections are q, k, v, o")

    @property
    def inserted(self) -> bool:
        """Whether memory tokens are inserted into a chunk."""
        return self.trained and self.states == "inserted"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """A low-rank adapter of one role: its linear layers, rank and scale (2106.09685).

    Raises:
        ValueError: A value is out of its range.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[Linear, ...] = ("q", "k", "v", "o")

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))
        check_integer("rank", self.rank)
        if not self.targets or not set(self.targets) <= set(get_args(Linear)):
            raise ValueError(f"targets={self.targets!r} must be some of {', '.join(get_args(Linear))}")
