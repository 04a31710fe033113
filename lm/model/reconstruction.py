"""Losses that train the compression function (paper, section 3.2.1)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LossSum(NamedTuple):
    """A named auxiliary loss as a sum and the number of elements in it; divide once, at the end."""

    total: Tensor
    """scalar"""
    elements: Tensor
    """scalar"""


def content_attention(
    query_BHTd: Tensor, key_BHnd: Tensor, value_BHnd: Tensor, live_Bn: Tensor
) -> Tensor:
    """softmax(q k^T) v without positions or causal mask; queries are scaled already.

    A lane with nothing live reads zero. Returns [B, H, T, d].
    """
    if bool(live_Bn.all()) if live_Bn.device.type == "cpu" else False:
        return F.scaled_dot_product_attention(query_BHTd, key_BHnd, value_BHnd, scale=1.0)
    any_live = live_Bn.any(dim=1)[:, None, None, None]
    mask = live_Bn[:, None, None, :] | ~any_live
    read = F.scaled_dot_product_attention(
        query_BHTd, key_BHnd, value_BHnd, attn_mask=mask, scale=1.0
    )
    return torch.where(any_live, read, 0.0)


def attention_reconstruction(
    query_BHTd: Tensor,
    old: tuple[Tensor, Tensor, Tensor],
    new: tuple[Tensor, Tensor, Tensor],
) -> LossSum:
    """Squared difference of what the segment reads from old memory and from its compression.

    Content attention only, per head and before the output projection, as in the authors' code
    (paper, Algorithm 2). Queries and the old block are constants here; the caller projects the new
    block with constant weights, so that the gradient reaches the compression function alone.

    Args:
        query_BHTd: scaled queries of the segment.
        old: keys, values [B, H, n, d] and live slots [B, n] of the block that leaves memory.
        new: the same of its compression, [B, H, n / c, d] and [B, n / c].

    Returns:
        Sum over the lanes in which something was compressed, and its number of elements.
    """
    query = query_BHTd.detach()
    with torch.no_grad():
        target = content_attention(query, *old)
    read = content_attention(query, *new)
    live_lanes = old[2].any(dim=1).sum()
    elements_per_lane = query.shape[1] * query.shape[2] * query.shape[3]
    return LossSum((target - read).square().sum(), live_lanes * elements_per_lane)
