"""Expected attention (2510.00636): what normally distributed queries of the coming positions attend to."""

import torch
from torch import Tensor

from compmem.backbone.rotary import rotate

FUTURE_POSITIONS = 512
"""Coming positions over which the rotary matrix is averaged, as in kvpress."""


def expected_attention(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, scale: float) -> Tensor:
    """Attention `[kv_heads, tokens]` that keys may expect: softmax of E[exp(q.k)] for normally distributed q.

    Mean and covariance are those of the queries, turned by the average of the rotary matrices of the coming positions.
    Heads that share a key are averaged.

    Args:
        query: Samples of each head before rotation, `[heads, samples, head_dim]`.
        key: Rotated keys, `[kv_heads, tokens, head_dim]`.
        cos: Cosines of the coming positions, `[positions, head_dim]`.
        sin: Sines, as `cos`.
        scale: Factor of the scores.
    """
    query, key = query.detach().float(), key.detach().float()
    mean_rotation = cos.float().mean(dim=0), sin.float().mean(dim=0)
    mean = query.mean(dim=1, keepdim=True)
    centred = query - mean
    covariance = centred.transpose(1, 2) @ centred / query.shape[1]
    mean = rotate(mean, *mean_rotation)
    covariance = rotate(rotate(covariance, *mean_rotation).transpose(1, 2), *mean_rotation)
    heads, _, width = key.shape
    key = key[:, None]
    mean_term = (key @ mean.reshape(heads, -1, width, 1))[..., 0]
    variance_term = ((key @ covariance.reshape(heads, -1, width, width)) * key).sum(dim=-1)
    return torch.softmax(scale * mean_term + scale**2 / 2 * variance_term, dim=-1).mean(dim=1)
