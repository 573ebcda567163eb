"""Grouped-query attention, with the mask for which each device has a fast kernel."""

from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import pad, scaled_dot_product_attention

SINK_TOKENS = 4
"""Number of first tokens that collect the attention which no other token needs (attention sinks, 2309.17453)."""


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, scale: float, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """The attention output `[rows, queries, heads * head_dim]`.

    Args:
        query: `[rows, heads, queries, head_dim]`.
        key: `[rows, kv_heads, slots, head_dim]`.
        value: As `key`.
        scale: Factor of the scores.
        mask: True where a query may attend, or values to add to the scores, `[rows, 1 or kv_heads, queries, slots]`.
            None: causal, the last query sees every slot.
        dropout: Fraction of attention weights that are dropped.
    """
    rows, heads, queries, head_dim = query.shape
    kv_heads, slots = key.shape[1], key.shape[2]
    groups = heads // kv_heads
    if queries == 1:
        # Heads that share a key are folded into the query axis, so keys and values are not copied.
        folded = query.reshape(rows, kv_heads, groups, head_dim)
        out = scaled_dot_product_attention(folded, key, value, attn_mask=mask, dropout_p=dropout, scale=scale)
        return out.reshape(rows, 1, heads * head_dim)
    past = slots - queries
    if mask is not None and mask.shape[1] > 1:
        mask = mask.repeat_interleave(groups, dim=1)
    bias: Tensor | None = mask
    if mask is None and query.is_cuda and past:
        bias = causal_lower_right(queries, slots)
    elif mask is None and past > queries:
        bias = torch.ones(queries, slots, dtype=torch.bool, device=query.device).tril(past)
    elif mask is None and past:
        # With empty queries in front the mask is plainly causal, which is faster on a CPU than an explicit mask.
        query = pad(query, (0, 0, past, 0))
    elif mask is not None and query.is_cuda and groups > 1:
        # CUDA kernels that take a mask do not share keys between heads; the fallback would store all scores.
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    # On a CPU the backward pass in bfloat16 takes four times as long as in float32.
    use_float32 = query.device.type == "cpu" and query.dtype == torch.bfloat16 and torch.is_grad_enabled()
    dtype = query.dtype
    if use_float32:
        query, key, value = query.float(), key.float(), value.float()
        bias = bias.float() if bias is not None and bias.is_floating_point() else bias
    with torch.autocast(query.device.type, enabled=False) if use_float32 else nullcontext():
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=dropout, is_causal=bias is None, scale=scale,
            enable_gqa=key.shape[1] != heads,
        )  # fmt: skip
    return out[:, :, -queries:].transpose(1, 2).reshape(rows, queries, heads * head_dim).to(dtype)
