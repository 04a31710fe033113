"""Relative attention for CPUs, a few lanes at a time so that scores stay in the cache.

The formula is RelativeAttention.scores and MemoryAttention.attend; only the order of work differs.
Scores of a whole batch are tens of megabytes and each of the dozen element-wise passes over them
would go through main memory; here every pass but the last works on about a megabyte. Keys and
values of memory and segment are never joined as a whole: those of a few lanes are laid side by
side, in room that all lanes use.

Shapes as in base.py; l lanes at a time, n = l H rows.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def _shifted(scores_nbe: Tensor, keys: int) -> Tensor:
    """View [n, b, e] scores by distance as [n, b, keys] scores by key.

    e is at least `keys`, which keeps the view inside the tensor; entries beyond a row's end fall
    into the next row and belong to keys after the query, which are masked.
    """
    n, queries, width = scores_nbe.shape
    return scores_nbe.as_strided(
        (n, queries, keys),
        (queries * width, width - 1, 1),
        scores_nbe.storage_offset() + queries - 1,
    )


class DistanceTable:
    """A table for every lane of a chunk and every block of queries.

    Args:
        table_HWd: encoded distances.
        keys: how many keys have their place in it.
        queries: number of queries T of a segment.
        block: how many of them read it together; T is a multiple of it.
        lanes: lanes of a chunk.
    """

    def __init__(self, table_HWd: Tensor, keys: int, queries: int, block: int, lanes: int) -> None:
        self.keys, self.block = keys, block
        self.heads, self.rows, _ = table_HWd.shape
        # One more than it reads, or all there are: an even number, mostly, and thus faster.
        width = min(keys + block, self.rows)
        self.parts = [slice(r, r + width) for r in range(queries - block, -1, -block)]
        blocks = torch.stack([table_HWd[:, part] for part in self.parts], dim=1)
        self.by_block = blocks.flatten(0, 1).repeat(lanes, 1, 1)

    def split(self, x_nTk: Tensor) -> Tensor:
        """Queries by blocks, [n, T / b, b, k], as a view."""
        return x_nTk.unflatten(1, (len(self.parts), self.block))

    def scores(self, query_nTd: Tensor, out_nTk: Tensor) -> None:
        """Write scores by key, for no more lanes than a chunk has."""
        query = self.split(query_nTd).flatten(0, 1)
        by_distance = torch.bmm(query, self.by_block[: len(query)].transpose(1, 2))
        self.split(out_nTk).copy_(self.by_key(by_distance))

    def by_key(self, by_distance: Tensor) -> Tensor:
        """[n T / b, b, e] scores by distance as [n, T / b, b, keys] by key, a view."""
        return _shifted(by_distance, self.keys).unflatten(0, (-1, len(self.parts)))


class DistanceGradient:
    """The way back from gradients of scores by key, for one table.

    Rows of its buffer are wide enough that those of the view by key do not overlap, so it can be
    written to; what the view does not reach stays zero.
    """

    def __init__(self, table: DistanceTable) -> None:
        self.table = table
        self.grad_by_block = torch.zeros_like(table.by_block)
        rows, width, _ = table.by_block.shape
        buffer = table.by_block.new_zeros(rows, table.block, table.keys + table.block)
        self.by_key = table.by_key(buffer)
        self.by_distance = buffer[:, :, :width]

    def back(self, grad_nTk: Tensor, query_nTd: Tensor) -> Tensor:
        """Gradient of the queries, [n, T, d]; that of the table is added up."""
        query = self.table.split(query_nTd).flatten(0, 1)
        self.by_key[: len(grad_nTk)].copy_(self.table.split(grad_nTk))
        by_distance = self.by_distance[: len(query)]
        self.grad_by_block[: len(query)].baddbmm_(by_distance.transpose(1, 2), query)
        return torch.bmm(by_distance, self.table.by_block[: len(query)]).view(query_nTd.shape)

    def total(self) -> Tensor:
        """Gradient of the table, [H, W, d]."""
        table = self.table
        lanes = self.grad_by_block.unflatten(0, (-1, table.heads, len(table.parts)))
        grad = lanes.new_zeros(table.heads, table.rows, lanes.shape[-1])
        for part, grad_part in zip(table.parts, lanes.sum(0).unbind(1), strict=True):
            grad[:, part] += grad_part
        return grad


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
    """Relative attention of a segment, called as
    .apply(query, *tables, pinned, live_BN, dropped, received, *keys, *values), with the keys and
    values of each part of [pinned ; compressed ; memory ; segment], for as many heads as the
    queries.
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
            if pinned:
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
        tables = (content_bias, memory_bias, memory_key, compressed_bias, compressed_key)
        ctx.save_for_backward(query, *tables, weights, dropped, *parts)
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
            *(None, None, None, None),
            *grads,
        )
