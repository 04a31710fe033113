"""Relative attention by Transformer-XL's shift, in plain tensor operations: the route for every
device and, in the tests, the yardstick of the faster ones.

Shapes as in base.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lm.model.attention.base import Reading, Slots, dropped_weights, visible
from lm.model.attention.decode import Places


class Positions(NamedTuple):
    """Everything that attention knows of positions."""

    content_bias: Tensor
    """u, [H, d]"""
    memory_bias: Tensor
    """v, [H, d]"""
    memory_key: Tensor
    """r, [H, W, d], from the farthest distance down to 0"""
    compressed_bias: Tensor | None
    """v', [H, d]; None without compressed memory"""
    compressed_key: Tensor | None
    """r', [H, W', d], likewise; distance 0 is not read"""
    pinned: int = 0
    """Slots before compressed memory, which have no place: only their content is scored."""


def relative_shift(scores: Tensor, keys: int) -> Tensor:
    """Turn scores by distance into scores by key (Transformer-XL, appendix B).

    scores[..., t, w] belongs to distance index w (far to near). Query t lies t steps further from
    every key than query 0, so key j of query t stands at w = j + T - 1 - t:

        w:    0 1 2 3 4          t = 0 reads  . . 2 3 4
        T=3                      t = 1 reads  . 1 2 3 .
                                 t = 2 reads  0 1 2 . .

    Padding each row by one column and viewing the same memory with rows one shorter does this
    without a gather. Entries beyond a row's end (keys after the query) are arbitrary finite values.

    Args:
        scores: [..., T, W] with W >= keys.
        keys: number of keys wanted per query.

    Returns:
        [..., T, keys]
    """
    queries = scores.shape[-2]
    width = keys + queries - 1
    padded = torch.nn.functional.pad(scores, (0, width + 1 - scores.shape[-1]))
    flat = padded.flatten(-2)[..., queries - 1 : queries - 1 + queries * width]
    return flat.unflatten(-1, (queries, width))[..., :keys]


def scores_by_key(scores_BHtW: Tensor, keys: int, segment: int, places: Places) -> Tensor:
    """Scores by distance, of tables for a whole segment of `segment` tokens, as scores by key.

    Tables go from far to near, so the scores of a query at place i begin at row segment - 1 - i.
    """
    queries = scores_BHtW.shape[2]
    if places.first is None:
        start = segment - 1 - places.place_Bt
        index = start[:, :, None] + torch.arange(keys, device=start.device)
        index = index.clamp(0, scores_BHtW.shape[-1] - 1)[:, None]
        return scores_BHtW.gather(-1, index.expand(-1, scores_BHtW.shape[1], -1, -1))
    if queries == 1:
        return scores_BHtW.narrow(-1, segment - 1 - places.first, keys)
    return relative_shift(scores_BHtW[..., segment - places.first - queries :], keys)


def attend(
    query_BHTd: Tensor, slots: Slots, positions: Positions, reading: Reading
) -> tuple[Tensor, Tensor | None]:
    """Relative attention of a segment over [pinned ; compressed ; memory ; segment].

    Returns the heads' outputs [B, H, T, d] and, if asked, the attention [B, S] that each key
    received, summed over heads and queries, before dropout and without gradient.
    """
    queries, slots = query_BHTd.shape[2], slots.for_heads(query_BHTd.shape[1])
    content = (query_BHTd + positions.content_bias[:, None]) @ slots.key_BHnd.transpose(-1, -2)
    near = (query_BHTd + positions.memory_bias[:, None]) @ positions.memory_key.transpose(-1, -2)
    before = positions.pinned
    parts = [near.new_zeros(*near.shape[:3], before)] if before else []
    if positions.compressed_key is not None and positions.compressed_bias is not None:
        compressed = positions.compressed_key.shape[1] - queries
        before += compressed
        far = query_BHTd + positions.compressed_bias[:, None]
        far = far @ positions.compressed_key.transpose(-1, -2)
        parts.append(relative_shift(far, compressed))
    parts.append(relative_shift(near, slots.number - before))
    scores = content + torch.cat(parts, dim=-1)
    scores = scores.masked_fill(~visible(reading, queries), float("-inf"))
    weights = scores.softmax(dim=-1)
    received = weights.detach().sum(dim=(1, 2)) if reading.received else None
    dropped = dropped_weights(query_BHTd, slots.number, reading)
    if dropped is not None:
        weights = weights * dropped
    return weights @ slots.value_BHnd, received
