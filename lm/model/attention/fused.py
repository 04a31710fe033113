"""Relative attention as ordinary scaled-dot-product attention over widened queries and keys.

Shapes as in base.py; P sinusoids of frequencies w.

A position score is (q_i + v) . W_r phi(i-j) = a_i . phi(i-j) with a_i = W_r^T (q_i + v), whose
halves s and c belong to the sines and the cosines. By the angle-sum identities

    s sin w(i-j) + c cos w(i-j) = (s sin wi + c cos wi) cos wj + (c sin wi - s cos wi) sin wj

so it is the dot product of a vector of the query and one of the key, and both kinds of score
together are one dot product of width d + P, which a fused kernel computes without holding scores.
Each of the two position systems adds its own P; keys of the other system are zero there.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.model.attention.base import Reading, Slots, sinusoids, visible


class WidePositions(NamedTuple):
    """Everything that widened attention knows of positions."""

    content_bias: Tensor
    """u, [H, d]"""
    memory_bias: Tensor
    """v, [H, d]"""
    memory_map: Tensor
    """W_r by heads, [H, d, P]"""
    compressed_bias: Tensor | None
    """v', [H, d]; None without compressed memory"""
    compressed_map: Tensor | None
    """W_r' by heads, [H, d, P]"""
    compressed: int
    """Number of compressed slots C."""
    pinned: int
    """Number of slots k before them, whose content alone is scored."""


def _widened_queries(biased_BHTd: Tensor, map_HdP: Tensor, place_T: Tensor) -> Tensor:
    """The factor of a position score that belongs to the query, [B, H, T, P]."""
    sine, cosine = (biased_BHTd @ map_HdP).chunk(2, dim=-1)
    sin_i, cos_i = sinusoids(place_T, map_HdP.shape[2], map_HdP.dtype).chunk(2, dim=-1)
    return torch.cat([sine * sin_i + cosine * cos_i, cosine * sin_i - sine * cos_i], dim=-1)


def _widened_keys(place_S: Tensor, width: int, like: Tensor) -> Tensor:
    """The factor of a position score that belongs to the key, [S, P]."""
    sin_j, cos_j = sinusoids(place_S, width, like.dtype).chunk(2, dim=-1)
    return torch.cat([cos_j, sin_j], dim=-1)


def attend_widened(
    query_BHTd: Tensor, slots: Slots, positions: WidePositions, reading: Reading
) -> Tensor:
    """Relative attention of a segment over [pinned ; compressed ; memory ; segment],
    [B, H, T, d].
    """
    slots = slots.for_heads(query_BHTd.shape[1])
    key_BHSd, queries, device = slots.key_BHnd, query_BHTd.shape[2], query_BHTd.device
    compressed, pinned = positions.compressed, positions.pinned
    sinusoids_P = positions.memory_map.shape[2]
    # Places are counted from the first token of the segment.
    place_T = torch.arange(queries, device=device)
    near_S = torch.arange(queries + pinned + compressed - slots.number, queries, device=device)
    wide_query = [query_BHTd + positions.content_bias[:, None]]
    biased = query_BHTd + positions.memory_bias[:, None]
    wide_query.append(_widened_queries(biased, positions.memory_map, place_T))
    wide_key = F.pad(_widened_keys(near_S, sinusoids_P, key_BHSd), (0, 0, pinned + compressed, 0))
    if positions.compressed_bias is not None and positions.compressed_map is not None:
        biased = query_BHTd + positions.compressed_bias[:, None]
        wide_query.append(_widened_queries(biased, positions.compressed_map, place_T))
        # Compressed slots count one each, directly before the segment (authors' code).
        far_S = torch.arange(-compressed, 0, device=device)
        far_key = _widened_keys(far_S, sinusoids_P, key_BHSd)
        far_key = F.pad(far_key, (0, 0, pinned, slots.number - pinned - compressed))
        wide_key = torch.cat([wide_key, far_key], dim=-1)
    return F.scaled_dot_product_attention(
        torch.cat(wide_query, dim=-1),
        torch.cat([key_BHSd, wide_key.expand(*key_BHSd.shape[:2], -1, -1)], dim=-1),
        slots.value_BHnd,
        attn_mask=visible(reading, queries),
        dropout_p=reading.dropout,
        scale=1.0,
    )
