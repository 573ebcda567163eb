"""Rotary positions: tables of the stock model's angles, so that a key can be rotated to any position."""

import torch
from torch import Tensor, nn


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """States `[..., positions, head_dim]` rotated by the angles of their positions (2104.09864)."""
    half = states.shape[-1] // 2
    turned = torch.cat((-states[..., half:], states[..., :half]), dim=-1)
    return states * cos + turned * sin


class Rotary:
    """Cosine and sine of every position, computed by the stock model's rotary module and cached as tables."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tables: tuple[Tensor, Tensor] | None = None

    def __call__(self, length: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of positions 0 to `length - 1`, `[length, head_dim]` each, as `like` in dtype and device."""
        tables = self._tables
        if (
            tables is None
            or len(tables[0]) < length
            or tables[0].dtype != like.dtype
            or tables[0].device != like.device
        ):
            size = max(256, 1 << (length - 1).bit_length())
            # Tables made in inference mode could not be used in a later training step.
            with torch.inference_mode(False):
                positions = torch.arange(size, device=like.device)[None]
                cos, sin = self._module(torch.empty(0, dtype=like.dtype, device=like.device), positions)
                tables = self._tables = (cos[0], sin[0])
        return tables[0][:length], tables[1][:length]

    def at(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine of these positions `[rows]`, `[rows, head_dim]` each, computed on the device."""
        cos, sin = self._module(like, positions[:, None])
        return cos[:, 0], sin[:, 0]
