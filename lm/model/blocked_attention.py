"""Relative attention for CPUs, a few lanes at a time so that scores stay in the cache.

The formula is relative.attend's; only the order of work differs. Scores of a whole batch are tens
of megabytes and each of the dozen element-wise passes over them would go through main memory; here
every pass but the last works on about a megabyte. Shapes as in attention.py.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_ELEMENTS = 1 << 18
"""Scores worked on at once: 1 MiB in float32."""


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


def _unshift_buffer(like: Tensor, n: int, queries: int, keys: int) -> tuple[Tensor, Tensor]:
    """A zeroed [n, T, keys + T] buffer by distance, and the [n, T, keys] view of it by key.

    Rows are wide enough that the view's rows do not overlap, so it can be written to.
    """
    buffer = like.new_zeros(n, queries, keys + queries)
    return buffer, _shifted(buffer, keys)


def _bias(query_BHTd: Tensor, bias_Hd: Tensor) -> Tensor:
    """(q + bias) as contiguous [B H, T, d]."""
    return (query_BHTd + bias_Hd[:, None]).contiguous().flatten(0, 1)


class BlockedAttention(torch.autograd.Function):
    """relative.attend for a whole segment; called as
    .apply(query, key, value, *positions, live_BN, dropped, received).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        content_bias: Tensor,
        memory_bias: Tensor,
        memory_key: Tensor,
        compressed_bias: Tensor | None,
        compressed_key: Tensor | None,
        live_BN: Tensor,
        dropped: Tensor | None,
        received: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the heads' outputs [B, H, T, d] and, if asked, the attention [B, S] received."""
        lanes, heads, queries, width = query.shape
        keys = key.shape[2]
        slots = live_BN.shape[1]
        compressed = 0 if compressed_key is None else compressed_key.shape[1] - queries + 1
        chunk = max(1, CHUNK_ELEMENTS // (heads * queries * keys)) * heads
        key, value = key.contiguous().flatten(0, 1), value.contiguous().flatten(0, 1)
        q_content = _bias(query, content_bias)
        q_near = _bias(query, memory_bias)
        q_far = None if compressed_bias is None else _bias(query, compressed_bias)
        near_key = memory_key.transpose(1, 2).repeat(chunk // heads, 1, 1)
        far_key = None
        if compressed_key is not None:
            far_key = compressed_key.transpose(1, 2).repeat(chunk // heads, 1, 1)
        future = torch.full((queries, queries), float("-inf"), dtype=query.dtype).triu(1)
        dead = None if bool(live_BN.all()) else ~live_BN.repeat_interleave(heads, dim=0)[:, None]
        dropped = None if dropped is None else dropped.flatten(0, 1)
        weights = query.new_empty(lanes * heads, queries, keys)
        read = query.new_empty(lanes * heads, queries, width)
        for start in range(0, lanes * heads, chunk):
            part = slice(start, min(start + chunk, lanes * heads))
            n = part.stop - part.start
            scores = weights[part]
            near = torch.bmm(q_near[part], near_key[:n])
            scores[:, :, compressed:] = _shifted(near, keys - compressed)
            if q_far is not None and far_key is not None:
                far = torch.bmm(q_far[part], far_key[:n])
                scores[:, :, :compressed] = _shifted(far, compressed)
            scores.baddbmm_(q_content[part], key[part].transpose(1, 2))
            scores[:, :, slots:] += future
            if dead is not None:
                scores[:, :, :slots].masked_fill_(dead[part], float("-inf"))
            weights[part] = scores.softmax(dim=-1)
            used = weights[part] if dropped is None else weights[part] * dropped[part]
            torch.bmm(used, value[part], out=read[part])
        ctx.save_for_backward(
            q_content, q_near, q_far, key, value, memory_key, compressed_key, weights, dropped
        )
        ctx.shape = (lanes, heads, queries, width, keys, compressed, chunk)
        total = weights.view(lanes, heads * queries, keys).sum(dim=1) if received else None
        if total is not None:
            ctx.mark_non_differentiable(total)
        return read.view(lanes, heads, queries, width), total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_read: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of every input but the mask."""
        q_content, q_near, q_far, key, value, memory_key, compressed_key, weights, dropped = (
            ctx.saved_tensors
        )
        lanes, heads, queries, width, keys, compressed, chunk = ctx.shape
        rows = lanes * heads
        grad_read = grad_read.contiguous().view(rows, queries, width)
        grad_q, grad_q_near = torch.empty_like(q_content), torch.empty_like(q_content)
        grad_q_far = None if q_far is None else torch.empty_like(q_content)
        grad_key, grad_value = torch.empty_like(key), torch.empty_like(value)
        repeated = chunk // heads
        near_key = memory_key.repeat(repeated, 1, 1)
        grad_near_key = torch.zeros_like(near_key)
        near, near_view = _unshift_buffer(key, chunk, queries, keys - compressed)
        near = near[:, :, : keys - compressed]
        if compressed_key is not None:
            far_key = compressed_key.repeat(repeated, 1, 1)
            grad_far_key = torch.zeros_like(far_key)
            far, far_view = _unshift_buffer(key, chunk, queries, compressed)
            far = far[:, :, : compressed + queries - 1]
        for start in range(0, rows, chunk):
            part = slice(start, min(start + chunk, rows))
            n = part.stop - part.start
            grad_weights = torch.bmm(grad_read[part], value[part].transpose(1, 2))
            used = weights[part]
            if dropped is not None:
                grad_weights *= dropped[part]
                used = used * dropped[part]
            grad_scores = torch._softmax_backward_data(
                grad_weights, weights[part], -1, weights.dtype
            )
            torch.bmm(used.transpose(1, 2), grad_read[part], out=grad_value[part])
            torch.bmm(grad_scores.transpose(1, 2), q_content[part], out=grad_key[part])
            torch.bmm(grad_scores, key[part], out=grad_q[part])
            near_view[:n] = grad_scores[:, :, compressed:]
            torch.bmm(near[:n], near_key[:n], out=grad_q_near[part])
            grad_near_key[:n].baddbmm_(near[:n].transpose(1, 2), q_near[part])
            if q_far is not None and grad_q_far is not None:
                far_view[:n] = grad_scores[:, :, :compressed]
                torch.bmm(far[:n], far_key[:n], out=grad_q_far[part])
                grad_far_key[:n].baddbmm_(far[:n].transpose(1, 2), q_far[part])

        def biases(grad: Tensor) -> Tensor:
            return grad.view(lanes, heads, queries, width).sum(dim=(0, 2))

        grad_query = grad_q + grad_q_near
        far_grads: tuple[Tensor | None, Tensor | None] = (None, None)
        if grad_q_far is not None:
            grad_query += grad_q_far
            far_grads = (biases(grad_q_far), grad_far_key.view(repeated, heads, -1, width).sum(0))
        return (
            grad_query.view(lanes, heads, queries, width),
            grad_key.view(lanes, heads, keys, width),
            grad_value.view(lanes, heads, keys, width),
            biases(grad_q),
            biases(grad_q_near),
            grad_near_key.view(repeated, heads, -1, width).sum(0),
            *far_grads,
            None,
            None,
            None,
        )
