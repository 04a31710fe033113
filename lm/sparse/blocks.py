"""Products of blocks: dense products of small matrices, one for each block that there is."""

import torch
from torch import Tensor

from lm.sparse.layout import Layout
from lm.sparse.patterns import Pattern


class BlockPattern(Pattern):
    """One small product after the other, each on a slice of the activations: on CPUs nothing is
    gathered, and a block of 32 x 32 runs near the speed of a large matrix.
    """

    def __init__(self, index: Tensor, active: int, layout: Layout, first: int) -> None:
        super().__init__(index, active, layout, first)
        columns = layout.columns
        self.places = [divmod(unit, columns) for unit in self.active.tolist()]
        self.gradient_places = [divmod(unit, columns) for unit in self.both.tolist()]

    def product(self, weights: Tensor, x_iN: Tensor) -> Tensor:
        """See Pattern."""
        y_rN = x_iN.new_zeros(self.rows, x_iN.shape[1])
        x, y = self._split(x_iN), self._split(y_rN)
        for (row, column), block in zip(self.places, self._blocks(weights), strict=True):
            y[row].addmm_(block, x[column])
        return y_rN

    def input_gradient(self, weights: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        x_iN = gradient_rN.new_zeros(self.layout.in_features, gradient_rN.shape[1])
        x, y = self._split(x_iN), self._split(gradient_rN)
        for (row, column), block in zip(self.places, self._blocks(weights), strict=True):
            x[column].addmm_(block.T, y[row])
        return x_iN

    def gradient_at(self, x_iN: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        side = self.layout.block
        blocks = x_iN.new_empty(len(self.gradient_places), side, side)
        x, y = self._split(x_iN), self._split(gradient_rN)
        for (row, column), block in zip(self.gradient_places, blocks.unbind(0), strict=True):
            torch.mm(y[row], x[column].T, out=block)
        return blocks.flatten()

    def _split(self, x_fN: Tensor) -> tuple[Tensor, ...]:
        return x_fN.split(self.layout.block)

    def _blocks(self, weights: Tensor) -> tuple[Tensor, ...]:
        return weights.view(-1, self.layout.block, self.layout.block).unbind(0)


class BsrPattern(Pattern):
    """All blocks in one call: torch's block-sparse kernels, written in Triton for GPUs."""

    def __init__(self, index: Tensor, active: int, layout: Layout, first: int) -> None:
        super().__init__(index, active, layout, first)
        columns = layout.columns
        row, column = self.active // columns, self.active % columns
        self.starts, self.columns = _starts(row, self.rows // layout.block), column
        self.order = (column * self.rows + row).argsort()
        self.starts_T = _starts(column[self.order], columns)
        self.columns_T = row[self.order]
        self.row, self.column = self.both // columns, self.both % columns

    def product(self, weights: Tensor, x_iN: Tensor) -> Tensor:
        """See Pattern."""
        side, shape = self.layout.block, (self.rows, self.layout.in_features)
        blocks = weights.view(-1, side, side)
        return _bsr(self.starts, self.columns, blocks, shape) @ x_iN

    def input_gradient(self, weights: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        side, shape = self.layout.block, (self.layout.in_features, self.rows)
        blocks = weights.view(-1, side, side)[self.order].transpose(1, 2).contiguous()
        return _bsr(self.starts_T, self.columns_T, blocks, shape) @ gradient_rN

    def gradient_at(self, x_iN: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        x = x_iN.unflatten(0, (-1, self.layout.block))[self.column]
        y = gradient_rN.unflatten(0, (-1, self.layout.block))[self.row]
        return torch.bmm(y, x.transpose(1, 2)).flatten()


def _starts(row: Tensor, rows: int) -> Tensor:
    counts = torch.bincount(row, minlength=rows).cumsum(0)
    return torch.cat([counts.new_zeros(1), counts])


def _bsr(starts: Tensor, columns: Tensor, blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_bsr_tensor(starts, columns, blocks, shape, check_invariants=False)
