"""Scores by distance for CPUs: encoded distances as blocks of queries read them.

Query t reads key j at row j + T - 1 - t of a table that goes from far to near (relative_shift draws
it), so b neighbouring queries read keys + b - 1 rows. If all T queries of a segment read the table
together, most of what they compute is read by none of them where keys are few.

Shapes: H heads, W encoded distances, d dimensions, b queries of a block, e rows that a block reads;
n = H times the lanes of a chunk.
"""

import torch
from torch import Tensor


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
