"""The interface between the trainer and a stage."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor
from torch.nn.parameter import Parameter

from compmem.backbone import Backbone

HELD_OUT_START = 1 << 40
"""Examples with numbers from here on are only used for measuring."""


class Batch(Protocol):
    """The data of one micro-batch."""

    @property
    def counts(self) -> Mapping[str, float]:
        """The divisor of each loss part's sum: for example, its number of tokens."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that pass through the decoder, for the throughput."""
        ...


B = TypeVar("B", bound=Batch)


class Stage(Protocol[B]):
    """A training stage: model, data, losses and measurements."""

    @property
    def name(self) -> str:
        """Name of the stage in checkpoints."""
        ...

    @property
    def backbone(self) -> Backbone:
        """The model that is trained."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each part of the loss; a part with weight 0 is only logged."""
        ...

    @property
    def state(self) -> dict[str, float]:
        """Numbers stored with a checkpoint: for example, the level of a curriculum."""
        ...

    def parameters(self) -> dict[str, Parameter]:
        """The trained parameters, by their names in the decoder; all others are frozen."""
        ...

    def batch(self, step: int, rows: range) -> B:
        """The examples with these numbers, determined by step and seed; in RL, by the model too."""
        ...

    def losses(self, batch: B) -> dict[str, Tensor]:
        """The parts of the loss, each a sum, with gradients."""
        ...

    def after(self, figures: Mapping[str, float]) -> bool:
        """Process a step's metrics, by part; True if batches that were made ahead are outdated."""
        ...

    def measure(self, step: int) -> dict[str, float]:
        """Metrics on held-out examples, by name."""
        ...

    def save(self, folder: Path) -> None:
        """Write the trained weights, for the next stage to start from."""
        ...


def save_added(backbone: Backbone, trained: Collection[str], folder: Path) -> None:
    """Save a backbone; only what is added to its stock model, unless that was trained too or is in the same folder."""
    changed = not backbone.parameters("base").keys().isdisjoint(trained)
    backbone.save(folder, base=None if changed else backbone.base)
