"""The relative attention formula in plain tensor operations: the route for every device and, in
the tests, the yardstick of the faster one. Shapes as in attention.py.
"""

from typing import NamedTuple

import torch
from torch import Tensor


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
    """r', [H, W', d], from the farthest distance down to 1"""

    def window(self, first: int, queries: int, segment: int) -> "Positions":
        """The rows that queries first .. first + queries - 1 of a segment need, of the whole
        segment's tables.
        """
        skip = segment - first - queries
        far = None if self.compressed_key is None else self.compressed_key[:, skip:]
        if far is not None and first:
            far = far[:, :-first]
        return self._replace(memory_key=self.memory_key[:, skip:], compressed_key=far)


class Reading(NamedTuple):
    """How a segment, or part of it, is read."""

    live_BN: Tensor
    """Which slots of [compressed ; memory] may be seen."""
    first: int = 0
    """Place of the first query in the segment."""
    dropped_BHTS: Tensor | None = None
    """Factors of the attention weights: dropout."""
    received: bool = False
    """Whether the attention that each key receives is wanted."""


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


def visible(live_BN: Tensor, queries: int, first: int) -> Tensor:
    """[B, 1, T, N + first + T] bool: live slots, and the segment up to the query itself.

    Args:
        live_BN: live slots of [compressed ; memory].
        queries: number of queries T, at positions first .. first + T - 1 of the segment.
        first: position of the first query.
    """
    lanes, slots = live_BN.shape
    causal = torch.ones(queries, first + queries, dtype=torch.bool, device=live_BN.device)
    causal = causal.tril(first).expand(lanes, queries, -1)
    memory = live_BN[:, None, :].expand(lanes, queries, slots)
    return torch.cat([memory, causal], dim=-1)[:, None]


def attend(
    query_BHTd: Tensor,
    key_BHSd: Tensor,
    value_BHSd: Tensor,
    positions: Positions,
    reading: Reading,
) -> tuple[Tensor, Tensor | None]:
    """Relative attention of queries first .. first+T-1 of a segment.

    Keys and values are [compressed ; memory ; segment up to the last query]. Returns the heads'
    outputs [B, H, T, d] and, if asked, the attention [B, S] that each key received, summed over
    heads and queries, before dropout and without gradient.
    """
    live_BN, first = reading.live_BN, reading.first
    queries, slots = query_BHTd.shape[2], live_BN.shape[1]
    content = (query_BHTd + positions.content_bias[:, None]) @ key_BHSd.transpose(-1, -2)
    near = (query_BHTd + positions.memory_bias[:, None]) @ positions.memory_key.transpose(-1, -2)
    compressed = 0
    parts = []
    if positions.compressed_key is not None and positions.compressed_bias is not None:
        compressed = positions.compressed_key.shape[1] - queries + 1
        far = query_BHTd + positions.compressed_bias[:, None]
        far = far @ positions.compressed_key.transpose(-1, -2)
        parts.append(relative_shift(far, compressed))
    parts.append(relative_shift(near, key_BHSd.shape[2] - compressed))
    scores = content + torch.cat(parts, dim=-1)
    assert key_BHSd.shape[2] == slots + first + queries
    scores = scores.masked_fill(~visible(live_BN, queries, first), float("-inf"))
    weights = scores.softmax(dim=-1)
    received = weights.detach().sum(dim=(1, 2)) if reading.received else None
    if reading.dropped_BHTS is not None:
        weights = weights * reading.dropped_BHTS
    return weights @ value_BHSd, received
