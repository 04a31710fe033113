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

CHUNK_ELEMENTS = 1 << 18
"""Scores worked on at once: 1 MiB in float32."""


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

    def repeat(self, table_HWd: Tensor) -> Tensor:
        """A table for every lane of a chunk, [n, W, d]."""
        return table_HWd.repeat(self.most, 1, 1)

    def total(self, tables_nWd: Tensor) -> Tensor:
        """The sum of such tables over lanes, [H, W, d]."""
        return tables_nWd.unflatten(0, (self.most, self.heads)).sum(0)


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


def _shifted(scores_nTW: Tensor, keys: int) -> Tensor:
    """View [n, T, W] scores by distance as [n, T, keys] scores by key (see relative_shift).

    W is at least `keys`, which keeps the view inside the tensor; entries beyond a row's end fall
    into the next row and belong to keys after the query, which are masked.
    """
    n, queries, width = scores_nTW.shape
    return scores_nTW.as_strided(
        (n, queries, keys),
        (queries * width, width - 1, 1),
        scores_nTW.storage_offset() + queries - 1,
    )


class _ByDistance:
    """The gradient of scores by key, turned back to scores by distance, for one table.

    Rows of its buffer are wide enough that those of the view by key do not overlap, so it can be
    written to; what the view does not reach stays zero.
    """

    def __init__(self, table_HWd: Tensor, keys: int, chunks: _Chunks) -> None:
        self.table = chunks.repeat(table_HWd)
        self.grad_table = torch.zeros_like(self.table)
        rows, queries = len(self.table), chunks.queries
        buffer = table_HWd.new_zeros(rows, queries, keys + queries)
        self.by_key = _shifted(buffer, keys)
        self.by_distance = buffer[:, :, : table_HWd.shape[1]]

    def back(self, grad_nTk: Tensor, query_nTd: Tensor) -> Tensor:
        """Gradient of the queries, [n, T, d]; that of the table is added up."""
        n = len(grad_nTk)
        self.by_key[:n] = grad_nTk
        self.grad_table[:n].baddbmm_(self.by_distance[:n].transpose(1, 2), query_nTd)
        return torch.bmm(self.by_distance[:n], self.table[:n])


class BlockedAttention(torch.autograd.Function):
    """shift_attention.attend, called as
    .apply(query, *positions, live_BN, dropped, received, *keys, *values), with the keys and values
    of each part of [compressed ; memory ; segment].
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
        live_BN: Tensor,
        dropped: Tensor | None,
        received: bool,
        *parts: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the heads' outputs [B, H, T, d] and, if asked, the attention [B, S] received."""
        keys, values = parts[: len(parts) // 2], parts[len(parts) // 2 :]
        (lanes, heads, queries, _), slots = query.shape, live_BN.shape[1]
        chunks = _Chunks(query, slots + queries)
        far = 0 if compressed_key is None else compressed_key.shape[1] - queries + 1
        near_table = chunks.repeat(memory_key).transpose(1, 2)
        far_table = None if compressed_key is None else chunks.repeat(compressed_key)
        future = torch.full((queries, queries), float("-inf"), dtype=query.dtype).triu(1)
        dead = None if bool(live_BN.all()) else ~live_BN.repeat_interleave(heads, dim=0)[:, None]
        dropped = None if dropped is None else dropped.flatten(0, 1)
        weights = query.new_empty(lanes * heads, queries, chunks.keys)
        read = _empty(query)
        room, query_room = chunks.room(chunks.keys), chunks.room(queries)
        for part, rows in chunks:
            scores = weights[rows]
            n = len(scores)
            near = torch.bmm(_biased(query, memory_bias, part, query_room), near_table[:n])
            scores[:, :, far:] = _shifted(near, chunks.keys - far)
            if far_table is not None and compressed_bias is not None:
                biased = _biased(query, compressed_bias, part, query_room)
                scores[:, :, :far] = _shifted(biased @ far_table[:n].transpose(1, 2), far)
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
        first = 0 if compressed_key is None else compressed_key.shape[1] - chunks.queries + 1
        near = _ByDistance(memory_key, chunks.keys - first, chunks)
        far = None if compressed_key is None else _ByDistance(compressed_key, first, chunks)
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
                total += back(2, far.back(grad_scores[:, :, :first], biased))
            grad_query[part] = total
        return (
            grad_query,
            *grad_biases[:2],
            chunks.total(near.grad_table),
            grad_biases[2],
            None if far is None else chunks.total(far.grad_table),
            None,
            None,
            None,
            *grads,
        )
