"""Relative attention for CPUs, a few lanes at a time so that scores stay in the cache.

The formula is shift_attention.attend's; only the order of work differs. Scores of a whole batch are
tens of megabytes and each of the dozen element-wise passes over them would go through main memory;
here every pass but the last works on about a megabyte. Keys and values of memory and segment are
never joined as a whole: those of a few lanes are laid side by side, in room that all lanes use.

Shapes as in attention.py; l lanes at a time, n = l H rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lm.model.distance_table import DistanceGradient, DistanceTable

CHUNK_ELEMENTS = 1 << 18
"""Scores worked on at once: 1 MiB in float32."""
FAR_QUERIES = 64
"""Queries that read compressed memory's distances together, where a segment is a multiple of it."""


class _Chunks:
    """A batch in chunks of a few lanes, and room for what is made of one chunk after the other."""

    def __init__(self, query_BHTd: Tensor, keys: int) -> None:
        self.lanes, self.heads, self.queries, self.width = query_BHTd.shape
        self.keys, self.like = keys, query_BHTd
        scores = self.heads * self.queries * keys
        self.most = min(self.lanes, max(1, CHUNK_ELEMENTS // scores))

    def __iter__(self) -> Iterator[tuple[slice, slice]]:
        """Lanes of each chunk, and their rows of [B H, ...]."""
        for first in range(0, self.lanes, self.most):
            last = min(first + self.most, self.lanes)
            yield slice(first, last), slice(first * self.heads, last * self.heads)

    def room(self, slots: int) -> Tensor:
        """Room for keys, values or queries of a chunk, [l, H, slots, d]."""
        return self.like.new_empty(self.most, self.heads, slots, self.width)


def _join(parts_BHnd: Sequence[Tensor], lanes: slice, room_lHSd: Tensor) -> Tensor:
    """Some lanes of parts, laid side by side: [n, S, d]."""
    room = room_lHSd[: lanes.stop - lanes.start]
    sizes = [part.shape[2] for part in parts_BHnd]
    for part, place in zip(parts_BHnd, room.split(sizes, dim=2), strict=True):
        place.copy_(part[lanes])
    return room.flatten(0, 1)


def _divide(joined_nSd: Tensor, lanes: slice, parts_BHnd: Sequence[Tensor]) -> None:
    """The inverse of `_join`: write into some lanes of the parts."""
    joined = joined_nSd.unflatten(0, (lanes.stop - lanes.start, -1))
    sizes = [part.shape[2] for part in parts_BHnd]
    for part, piece in zip(parts_BHnd, joined.split(sizes, dim=2), strict=True):
        part[lanes] = piece


def _biased(query_BHTd: Tensor, bias_Hd: Tensor, lanes: slice, room_lHTd: Tensor) -> Tensor:
    """Queries with a bias, of some lanes: [n, T, d]."""
    room = room_lHTd[: lanes.stop - lanes.start]
    return torch.add(query_BHTd[lanes], bias_Hd[:, None], out=room).flatten(0, 1)


def _empty(x_BHnd: Tensor) -> Tensor:
    """A new tensor of this shape, with the heads of a slot beside each other in memory."""
    return x_BHnd.new_empty(x_BHnd.transpose(1, 2).shape).transpose(1, 2)


def _tables(
    memory_key: Tensor, compressed_key: Tensor | None, pinned: int, chunks: _Chunks
) -> tuple[DistanceTable, DistanceTable | None]:
    """The tables of memory with the segment, and of compressed memory."""
    queries, lanes = chunks.queries, chunks.most
    if compressed_key is None:
        return DistanceTable(memory_key, chunks.keys - pinned, queries, queries, lanes), None
    far = compressed_key.shape[1] - queries
    block = FAR_QUERIES if queries % FAR_QUERIES == 0 else queries
    return (
        DistanceTable(memory_key, chunks.keys - pinned - far, queries, queries, lanes),
        DistanceTable(compressed_key, far, queries, block, lanes),
    )


class BlockedAttention(torch.autograd.Function):
    """shift_attention.attend, called as
    .apply(query, *positions, live_BN, dropped, received, *keys, *values), with the keys and values
    of each part of [pinned ; compressed ; memory ; segment], for as many heads as the queries.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        content_bias: Tensor,
        memory_bias: Tensor,
        memory_key: Tensor,
        compressed_bias: Tensor | None,
        compressed_key: Tensor | None,
        pinned: int,
        live_BN: Tensor,
        dropped: Tensor | None,
        received: bool,
        *parts: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the heads' outputs [B, H, T, d] and, if asked, the attention [B, S] received."""
        keys, values = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        (lanes, heads, queries, _), slots = query.shape, live_BN.shape[1]
        chunks = _Chunks(query, slots + queries)
        near, far = _tables(memory_key, compressed_key, pinned, chunks)
        first = pinned + (0 if far is None else far.keys)
        future = torch.full((queries, queries), float("-inf"), dtype=query.dtype).triu(1)
        dead = None if bool(live_BN.all()) else ~live_BN.repeat_interleave(heads, dim=0)[:, None]
        dropped = None if dropped is None else dropped.flatten(0, 1)
        weights = query.new_empty(lanes * heads, queries, chunks.keys)
        read = _empty(query)
        room, query_room = chunks.room(chunks.keys), chunks.room(queries)
        for part, rows in chunks:
            scores = weights[rows]
            biased = _biased(query, memory_bias, part, query_room)
            scores[:, :, :pinned] = 0
            near.scores(biased, scores[:, :, first:])
            if far is not None and compressed_bias is not None:
                biased = _biased(query, compressed_bias, part, query_room)
                far.scores(biased, scores[:, :, pinned:first])
            biased = _biased(query, content_bias, part, query_room)
            scores.baddbmm_(biased, _join(keys, part, room).transpose(1, 2))
            scores[:, :, slots:] += future
            if dead is not None:
                scores[:, :, :slots].masked_fill_(dead[rows], float("-inf"))
            torch.softmax(scores, dim=-1, out=scores)
            used = scores if dropped is None else scores * dropped[rows]
            _divide(torch.bmm(used, _join(values, part, room)), part, [read])
        ctx.save_for_backward(
            query,
            content_bias,
            memory_bias,
            memory_key,
            compressed_bias,
            compressed_key,
            weights,
            dropped,
            *parts,
        )
        ctx.pinned = pinned
        total = weights.view(lanes, -1, chunks.keys).sum(dim=1) if received else None
        if total is not None:
            ctx.mark_non_differentiable(total)
        return read, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_read: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of every input but the mask."""
        query, content_bias, memory_bias, memory_key, *rest = ctx.saved_tensors
        compressed_bias, compressed_key, weights, dropped, *parts = rest
        keys, values = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        chunks = _Chunks(query, weights.shape[2])
        pinned = ctx.pinned
        near_table, far_table = _tables(memory_key, compressed_key, pinned, chunks)
        first = pinned + (0 if far_table is None else far_table.keys)
        near = DistanceGradient(near_table)
        far = None if far_table is None else DistanceGradient(far_table)
        grad_query, grads = _empty(query), [_empty(part) for part in parts]
        grad_keys, grad_values = grads[: len(keys)], grads[len(keys) :]
        biases = (content_bias, memory_bias, compressed_bias)
        grad_biases = [None if bias is None else torch.zeros_like(bias) for bias in biases]
        room, query_room = chunks.room(chunks.keys), chunks.room(chunks.queries)
        read_room = chunks.room(chunks.queries)

        def back(kind: int, grad_biased_nTd: Tensor) -> Tensor:
            """The gradient of q + bias is that of both."""
            grad = grad_biased_nTd.unflatten(0, (-1, chunks.heads))
            grad_biases[kind] += grad.sum(dim=(0, 2))
            return grad

        for part, rows in chunks:
            attention = weights[rows]
            grad = _join([grad_read], part, read_room)
            used = attention if dropped is None else attention * dropped[rows]
            _divide(torch.bmm(used.transpose(1, 2), grad), part, grad_values)
            grad_used = torch.bmm(grad, _join(values, part, room).transpose(1, 2))
            if dropped is not None:
                grad_used *= dropped[rows]
            grad_scores = torch._softmax_backward_data(grad_used, attention, -1, attention.dtype)
            biased = _biased(query, content_bias, part, query_room)
            _divide(torch.bmm(grad_scores.transpose(1, 2), biased), part, grad_keys)
            total = back(0, torch.bmm(grad_scores, _join(keys, part, room)))
            biased = _biased(query, memory_bias, part, query_room)
            total += back(1, near.back(grad_scores[:, :, first:], biased))
            if far is not None:
                biased = _biased(query, compressed_bias, part, query_room)
                total += back(2, far.back(grad_scores[:, :, pinned:first], biased))
            grad_query[part] = total
        return (
            grad_query,
            *grad_biases[:2],
            near.total(),
            grad_biases[2],
            None if far is None else far.total(),
            None,
            None,
            None,
            None,
            *grads,
        )
