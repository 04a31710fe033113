"""Relative attention as ordinary scaled-dot-product attention over widened queries and keys.

Shapes as in base.py; P sinusoids of frequencies w.

A position score is (q_i + v) . W_r phi(i-j) = a_i . phi(i-j) with a_i = W_r^T (q_i + v), whose
halves s and c belong to the sines and the cosines. By the angle-sum identities

    s sin w(i-j) + c cos w(i-j) = (s sin wi + c cos wi) cos wj + (c sin wi - s cos wi) sin wj

so it is the dot product of a vector of the query and one of the key, and both kinds of score
together are one dot product of width d + P, which a fused kernel computes without holding scores.
Each of the two position systems adds its own P; keys of the other system are zero there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lm.model.attention.base import Reading, Slots, sinusoids, visible


class System(NamedTuple):
    """A position system: what it knows of the positions of neighbouring slots. Other slots have no
    place in it.
    """

    bias_Hd: Tensor
    map_HdP: Tensor
    """W_r by heads."""
    place_n: Tensor
    """Places of its slots, counted from the first token of the segment."""
    first: int
    """The first of them."""


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
    query_BHTd: Tensor,
    slots: Slots,
    content_bias_Hd: Tensor,
    systems: Sequence[System],
    reading: Reading,
) -> Tensor:
    """Relative attention of a segment over [pinned ; compressed ; memory ; segment], [B, H, T, d].

    Args:
        query_BHTd: scaled queries.
        slots: what they read, for as many heads.
        content_bias_Hd: u.
        systems: of positions.
        reading: how slots are read.
    """
    key_BHSd, queries = slots.key_BKnd, query_BHTd.shape[2]
    place_T = torch.arange(queries, device=query_BHTd.device)
    wide_query, wide_key = [query_BHTd + content_bias_Hd[:, None]], []
    for system in systems:
        biased = query_BHTd + system.bias_Hd[:, None]
        wide_query.append(_widened_queries(biased, system.map_HdP, place_T))
        key = _widened_keys(system.place_n, system.map_HdP.shape[2], key_BHSd)
        after = slots.number - system.first - len(key)
        wide_key.append(F.pad(key, (0, 0, system.first, after)))
    positions_SP = torch.cat(wide_key, dim=-1)
    return F.scaled_dot_product_attention(
        torch.cat(wide_query, dim=-1),
        torch.cat([key_BHSd, positions_SP.expand(*key_BHSd.shape[:2], -1, -1)], dim=-1),
        slots.value_BKnd,
        attn_mask=visible(reading.live_BN, queries),
        dropout_p=reading.dropout,
        scale=1.0,
    )
