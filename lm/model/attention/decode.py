"""Attention of tokens that extend an open segment, a few at a time and each lane at its own place.

Memory's keys and values stand apart from those of the segment, because lanes may share them:
several continuations of one text read the same memory. Shapes as in base.py; t new tokens of
each lane, L tokens of the open segment that a query may see, B' lanes of memory, of which each
serves B / B' lanes of tokens.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Places(NamedTuple):
    """Where the new tokens stand in the open segments of their lanes."""

    place_Bt: Tensor
    """int64; a lane that reads fewer than t tokens has places for the others too."""
    first: int | None
    """Place of the first new token where it is the same in every lane, else None."""
    keys: int
    """Tokens L of the open segment that some query may see."""
    hidden_BtS: Tensor | None
    """bool, true where a query may not see a key of [compressed ; memory ; segment up to L] of
    layers with memory; None where every query may see all of them."""
    dead_Bt: Tensor | None
    """bool, true for tokens that are not there; None where all are."""


class OpenKeys(NamedTuple):
    """Placed keys, and values, of one layer."""

    memory_key_BHNd: Tensor
    """Of [compressed ; memory], for B' lanes."""
    memory_value_BHNd: Tensor
    key_BHTd: Tensor
    """Of the open segment, which has room for all its tokens."""
    value_BHTd: Tensor


def fold(x_BHtd: Tensor, memory_lanes: int) -> Tensor:
    """Queries [B, H, t, d] by lane of memory: [B', H, B / B' * t, d]."""
    lanes = x_BHtd.shape[0]
    if lanes == memory_lanes:
        return x_BHtd
    return x_BHtd.unflatten(0, (memory_lanes, -1)).transpose(1, 2).flatten(2, 3)


def unfold(x_BHtn: Tensor, lanes: int) -> Tensor:
    """The inverse of `fold`."""
    memory_lanes = x_BHtn.shape[0]
    if lanes == memory_lanes:
        return x_BHtn
    shared = lanes // memory_lanes
    return x_BHtn.unflatten(2, (shared, -1)).transpose(1, 2).flatten(0, 1)


def product(x_BHtm: Tensor, y_BKmn: Tensor) -> Tensor:
    """Matrix products [B, H, t, n], where neighbouring heads share the right factor of K heads and
    neighbouring lanes that of B' lanes; it is not copied for them.
    """
    lanes, heads = x_BHtm.shape[:2]
    folded, stored = fold(x_BHtm, y_BKmn.shape[0]), y_BKmn.shape[1]
    if stored != heads:
        folded = folded.unflatten(1, (stored, -1)).flatten(2, 3)
    result = folded @ y_BKmn
    if stored != heads:
        result = result.unflatten(2, (heads // stored, -1)).flatten(1, 2)
    return unfold(result, lanes)


def products(query_BHtd: Tensor, key_BKnd: Tensor) -> Tensor:
    """Products of queries and keys, [B, H, t, n]."""
    return product(query_BHtd, key_BKnd.transpose(-1, -2))


def content_scores(query_BHtd: Tensor, keys: OpenKeys, length: int) -> Tensor:
    """Products of queries and keys of [compressed ; memory ; segment up to L], [B, H, t, S]."""
    memory = products(query_BHtd, keys.memory_key_BHNd)
    segment = products(query_BHtd, keys.key_BHTd[:, :, :length])
    return torch.cat([memory, segment], dim=-1)


def weighted_values(weights_BHtS: Tensor, keys: OpenKeys) -> Tensor:
    """Sums of values weighted by attention, [B, H, t, d]."""
    slots = keys.memory_value_BHNd.shape[2]
    memory, segment = weights_BHtS.split([slots, weights_BHtS.shape[-1] - slots], dim=-1)
    read = product(segment, keys.value_BHTd[:, :, : segment.shape[-1]])
    return read + product(memory, keys.memory_value_BHNd) if slots else read


def read_open(
    attention: Any, query_BHtd: Tensor, keys: OpenKeys, tables: Any, places: Places
) -> tuple[Tensor, Tensor | None]:
    """What new tokens read, [B, H, t, d], and the attention [B, S] that keys received from them,
    summed over heads and queries, if compression asks for it.

    Args:
        attention: the layer's module, a MemoryAttention.
        query_BHtd: scaled queries.
        keys: of memory and of the open segment, the new tokens among them.
        tables: of the attention's positions.
        places: of the new tokens.
    """
    scores = attention.open_scores(query_BHtd, keys, tables, places)
    if places.hidden_BtS is not None:
        # A layer without memory has fewer keys; they are the last.
        hidden = places.hidden_BtS[:, None, :, -scores.shape[-1] :]
        scores = scores.masked_fill(hidden, float("-inf"))
    weights = F.softmax(scores, dim=-1)
    received = None
    if attention.counts_attention:
        alive = weights
        if places.dead_Bt is not None:
            alive = weights.masked_fill(places.dead_Bt[:, None, :, None], 0.0)
        received = alive.sum(dim=(1, 2))
    return weighted_values(weights, keys), received
