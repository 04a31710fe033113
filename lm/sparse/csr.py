"""Products of single weights in compressed rows, through torch's CSR kernels (MKL on CPUs)."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from lm.sparse.layout import Layout
from lm.sparse.patterns import Pattern

# Said once in every process by torch of all its sparse tensors; these products are held to the
# dense one by tests.
warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state")


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
    counts = torch.bincount(row, minlength=shape[0]).cumsum(0)
    starts = torch.cat([counts.new_zeros(1), counts]).int()
    return Places(starts, column[order].int(), order, shape)


class CsrPattern(Pattern):
    """Forward, and both gradients, with a sparse matrix in both orientations."""

    def __init__(self, index: Tensor, active: int, layout: Layout, first: int) -> None:
        super().__init__(index, active, layout, first)
        assert layout.size == 1
        rows, width = self.rows, layout.in_features
        row, column = self.active // width, self.active % width
        self.forward_places = places(row, column, (rows, width))
        self.backward_places = places(column, row, (width, rows))
        self.gradient_places = places(self.both // width, self.both % width, (rows, width))

    def product(self, weights: Tensor, x_iN: Tensor) -> Tensor:
        """See Pattern."""
        # The weights of A are kept by row.
        return self.forward_places.matrix(weights) @ x_iN

    def input_gradient(self, weights: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        transposed = self.backward_places
        return transposed.matrix(weights[transposed.order]) @ gradient_rN

    def gradient_at(self, x_iN: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        wanted = self.gradient_places
        zero = wanted.matrix(x_iN.new_zeros(len(wanted.columns)))
        by_row = torch.sparse.sampled_addmm(zero, gradient_rN, x_iN.T, beta=0.0).values()
        return torch.empty_like(by_row).index_copy_(0, wanted.order, by_row)


class CsrDensePattern(CsrPattern):
    """The same with a dense product for the weights' gradient, of which B is taken."""

    def gradient_at(self, x_iN: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        return (gradient_rN @ x_iN.T).flatten()[self.both]
