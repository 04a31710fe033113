"""Losses that train the compression function (paper, section 3.2.1)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.components import Linear
from lm.model.model_config import ModelConfig


class LossSum(NamedTuple):
    """A named auxiliary loss as a sum and the number of elements in it; divide once, at the end."""

    total: Tensor
    """scalar"""
    elements: Tensor
    """scalar"""


def stack_losses(layers: list[LossSum | None]) -> LossSum | None:
    """Losses of the layers side by side, [l] each; layers without one have 0 of 0 elements.

    None where no layer has one.
    """
    some = next((loss for loss in layers if loss is not None), None)
    if some is None:
        return None
    nothing = LossSum(torch.zeros_like(some.total), torch.zeros_like(some.elements))
    totals, elements = zip(*(nothing if loss is None else loss for loss in layers), strict=True)
    return LossSum(torch.stack(totals), torch.stack(elements))


def content_attention(
    query_BHTd: Tensor, key_BHnd: Tensor, value_BHnd: Tensor, live_Bn: Tensor
) -> Tensor:
    """softmax(q k^T) v without positions or causal mask; queries are scaled already.

    A lane with nothing live reads zero. Returns [B, H, T, d].
    """
    if _known_full(live_Bn):
        return F.scaled_dot_product_attention(query_BHTd, key_BHnd, value_BHnd, scale=1.0)
    any_live = live_Bn.any(dim=1)[:, None, None, None]
    mask = live_Bn[:, None, None, :] | ~any_live
    read = F.scaled_dot_product_attention(
        query_BHTd, key_BHnd, value_BHnd, attn_mask=mask, scale=1.0
    )
    return torch.where(any_live, read, 0.0)


def _known_full(live_Bn: Tensor) -> bool:
    """Whether all slots are live, where asking does not make a GPU wait or end a compiled graph."""
    if live_Bn.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return bool(live_Bn.all())


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
        query_BHTd: scaled queries, those of the segment that come after the whole old block.
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


class Decoder(nn.Module):
    """g of the auto-encoding loss: each compressed slot back to the c slots it was made from, a
    transposed convolution with kernel = stride = c and no bias (authors' code).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.rate = config.rate
        self.projection = Linear(config.width, config.rate * config.width, bias=False)

    def forward(self, new_BwD: Tensor) -> Tensor:
        """[B, w, D] -> [B, w c, D]."""
        return self.projection(new_BwD).unflatten(-1, (self.rate, -1)).flatten(1, 2)


def auto_encoding(old_BnD: Tensor, decoded_BnD: Tensor, live_Bn: Tensor) -> LossSum:
    """Squared difference of the block that leaves memory and its decoded compression (paper,
    section 3.2.1), over the live slots. The block is a constant, so the gradient reaches the
    compression function and its decoder alone.
    """
    squares = (old_BnD.detach() - decoded_BnD).square().sum(-1)
    return LossSum(torch.where(live_Bn, squares, 0.0).sum(), live_Bn.sum() * old_BnD.shape[2])
