"""What the trainer asks of a stage."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, TypeVar

from torch import Tensor
from torch.nn.parameter import Parameter

from compmem.backbone import Backbone

HELD = 1 << 40
"""Numbers of examples from here on are drawn for measuring alone."""


class Batch(Protocol):
    """What one micro-batch sees."""

    @property
    def counts(self) -> Mapping[str, float]:
        """What the sum of each loss part is divided by: its tokens, say."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that go through the decoder, for the throughput."""
        ...


B = TypeVar("B", bound=Batch)


class Stage(Protocol[B]):
    """What is trained, on what, and how it is judged."""

    @property
    def name(self) -> str:
        """What its checkpoints are called."""
        ...

    @property
    def backbone(self) -> Backbone:
        """What is trained."""
        ...

    @property
    def weights(self) -> Mapping[str, float]:
        """The weight of each part of the loss; one of weight 0 is a figure that is only told."""
        ...

    @property
    def state(self) -> dict[str, float]:
        """Numbers that are kept with a checkpoint: how far a curriculum has come, say."""
        ...

    def parameters(self) -> dict[str, Parameter]:
        """What the optimiser changes, by its name in the decoder; all else is frozen."""
        ...

    def batch(self, step: int, rows: range) -> B:
        """The examples of these numbers: a function of them, the step and the stage's seed; in RL, of the model too."""
        ...

    def losses(self, batch: B) -> dict[str, Tensor]:
        """The parts of the loss, each a sum, with gradients."""
        ...

    def after(self, figures: Mapping[str, float]) -> bool:
        """Take note of a step's figures, by part; True where batches that were made ahead are out of date."""
        ...

    def measure(self, step: int) -> dict[str, float]:
        """Figures on held-out examples, by name."""
        ...

    def save(self, folder: Path) -> None:
        """Write what was trained, for the next stage to start from."""
        ...
