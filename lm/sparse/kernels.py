"""Sparse products: by blocks, by single weights in compressed rows, two of four in hardware."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from lm.sparse.layout import Layout
from lm.sparse.product import Pattern

# Said once in every process by torch of all its sparse tensors; these products are held to the
# dense one by tests.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


def _starts(row: Tensor, rows: int) -> Tensor:
    """Where each compressed row starts, and where the last one ends, [rows + 1]."""
    counts = torch.bincount(row, minlength=rows).cumsum(0)
    return torch.cat([counts.new_zeros(1), counts])


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


def _bsr(starts: Tensor, columns: Tensor, blocks: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_bsr_tensor(starts, columns, blocks, shape, check_invariants=False)


class Places(NamedTuple):
    """Where the weights of a matrix are: its compressed rows, and the order that they take."""

    starts: Tensor
    columns: Tensor
    order: Tensor
    """Weights as they are kept -> weights by row."""
    shape: tuple[int, int]

    def matrix(self, values: Tensor) -> Tensor:
        """The sparse matrix with these weights, already by row."""
        return torch.sparse_csr_tensor(
            self.starts, self.columns, values, self.shape, check_invariants=False
        )


def places(row: Tensor, column: Tensor, shape: tuple[int, int]) -> Places:
    """Compress the rows of weights at these places; MKL wants 32-bit numbers."""
    order = (row * shape[1] + column).argsort()
    return Places(_starts(row, shape[0]).int(), column[order].int(), order, shape)


class CsrDensePattern(Pattern):
    """Forward and the inputs' gradient with a sparse matrix in both orientations, the weights'
    gradient with a dense product.
    """

    def __init__(self, index: Tensor, active: int, layout: Layout, first: int) -> None:
        super().__init__(index, active, layout, first)
        assert layout.size == 1
        rows, width = self.rows, layout.in_features
        row, column = self.active // width, self.active % width
        self.forward_places = places(row, column, (rows, width))
        self.backward_places = places(column, row, (width, rows))

    def product(self, weights: Tensor, x_iN: Tensor) -> Tensor:
        """See Pattern."""
        # The weights of A are kept by row.
        return self.forward_places.matrix(weights) @ x_iN

    def input_gradient(self, weights: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        transposed = self.backward_places
        return transposed.matrix(weights[transposed.order]) @ gradient_rN


class CsrPattern(CsrDensePattern):
    """The same, but the weights' gradient at the places of B alone."""

    def __init__(self, index: Tensor, active: int, layout: Layout, first: int) -> None:
        super().__init__(index, active, layout, first)
        width = layout.in_features
        self.gradient_places = places(self.both // width, self.both % width, (self.rows, width))

    def gradient_at(self, x_iN: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        wanted = self.gradient_places
        zero = wanted.matrix(x_iN.new_zeros(len(wanted.columns)))
        by_row = torch.sparse.sampled_addmm(zero, gradient_rN, x_iN.T, beta=0.0).values()
        return torch.empty_like(by_row).index_copy_(0, wanted.order, by_row)


class SemiPattern(Pattern):
    """Forward through the sparse tensor cores, gradients through the dense matrix."""

    def product(self, weights: Tensor, x_iN: Tensor) -> Tensor:
        """See Pattern."""
        y_rN: Tensor = to_sparse_semi_structured(self._matrix(weights)) @ x_iN
        return y_rN

    def input_gradient(self, weights: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        return self._matrix(weights).T @ gradient_rN

    def _matrix(self, weights: Tensor) -> Tensor:
        matrix = weights.new_zeros(self.rows * self.layout.in_features)
        matrix[self.active] = weights
        return matrix.view(self.rows, -1)
