"""Low-rank adapters, one set per role."""

import math

from torch import Tensor, nn
from torch.nn.functional import linear

from compmem.backbone.config import AdapterConfig


class LoRA(nn.Module):
    """The output that a low-rank adapter adds to a linear layer: `alpha / rank * x A^T B^T` (2106.09685, eq. 3).

    It is zero before training.
    """

    def __init__(self, base: nn.Linear, config: AdapterConfig) -> None:
        super().__init__()
        weight = base.weight
        self.down = nn.Parameter(weight.new_empty(config.rank, base.in_features))
        self.up = nn.Parameter(weight.new_zeros(base.out_features, config.rank))
        self.scale = config.alpha / config.rank
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """The adapter's part of the output."""
        return linear(linear(x, self.down), self.up) * self.scale
