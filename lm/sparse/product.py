"""Products with a sparse matrix, whose weights get their gradients at all of B.

Either by way of a dense matrix that lives only while it is used: it is made from the weights of A
when a product needs it, in the backward pass again, so that between the two nothing of its size is
held. Putting the weights into place costs well below a hundredth of the product for usual numbers
of tokens.

Or by the sparse kernels of a pattern, with the places of the weights prepared once a refresh. There
activations are feature-major, [features, N] for N tokens, as sparse kernels want them. What a
product returns is a view of such a tensor, and elementwise functions keep that order, so between
consecutive sparse layers nothing is transposed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lm.sparse.layout import Layout


def scattered(weights: Tensor, index: Tensor, layout: Layout) -> Tensor:
    """Dense matrix [out, in] with these weights [k size] in the units `index` and 0 elsewhere."""
    units = weights.new_zeros(layout.units, layout.size)
    units.index_copy_(0, index.long(), weights.view(-1, layout.size))
    return layout.to_matrix(units)


def gathered(matrix: Tensor, index: Tensor, layout: Layout) -> Tensor:
    """The units `index` of a matrix [out, in], flat [k size]."""
    return layout.to_units(matrix).index_select(0, index).flatten()


def no_view(x: Tensor) -> Tensor:
    """The same tensor, of which autograd does not know that it is a view: only so may what a custom
    function returns be changed in place, as activations do.
    """
    own = x.new_empty(0)
    return own.set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())


class Scatter(torch.autograd.Function):
    """The matrix of A as a function of the weights of B, whose gradient is taken at all of B.

    That gradient is what the weights outside A learn from, although they are 0 in the matrix.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, index: Tensor, active: int, layout: Layout) -> Tensor:
        """See the class."""
        ctx.save_for_backward(index)
        ctx.layout = layout
        return scattered(weights[: active * layout.size], index[:active], layout)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient of the weights of B."""
        (index,) = ctx.saved_tensors
        return gathered(gradient, index, ctx.layout), None, None, None


class DenseProduct(torch.autograd.Function):
    """x [..., in] times rows of the matrix of A, with the gradient of the weights taken at B."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weights: Tensor,
        index: Tensor,
        bias: Tensor | None,
        active: int,
        layout: Layout,
        first: int,
    ) -> Tensor:
        """See the class."""
        ctx.save_for_backward(x, weights, index)
        ctx.active, ctx.layout, ctx.first = active, layout, first
        matrix = scattered(weights[: active * layout.size], index[:active], layout)
        return no_view(F.linear(x, matrix[first:], bias))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, the weights and the bias."""
        x, weights, index = ctx.saved_tensors
        layout, active, first = ctx.layout, ctx.active, ctx.first
        x_gradient = weights_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            matrix = scattered(weights[: active * layout.size], index[:active], layout)
            x_gradient = gradient @ matrix[first:]
        rows = gradient.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            dense = rows.new_zeros(layout.out_features, layout.in_features)
            torch.mm(rows.T, x.flatten(0, -2), out=dense[first:])
            weights_gradient = gathered(dense, index, layout)
        if ctx.needs_input_grad[3]:
            bias_gradient = rows.sum(0)
        return x_gradient, weights_gradient, None, bias_gradient, None, None, None


class Pattern:
    """The rows of a sparse matrix from `first` on, ready for products.

    Shapes: r rows from `first` on, N tokens; weights are flat, of A or of all that learns.
    """

    def __init__(self, index: Tensor, active: int, layout: Layout, first: int) -> None:
        """Prepare.

        Args:
            index: units that learn: those of A first, each part in ascending order.
            active: units of A.
            layout: of the whole matrix.
            first: first row; a multiple of the blocks' side.
        """
        assert first % layout.block == 0
        self.layout, self.rows, self.learning = layout, layout.out_features - first, len(index)
        numbers = index.long() - first // layout.block * layout.columns
        above_active = int((numbers[:active] < 0).sum())
        above_explored = int((numbers[active:] < 0).sum())
        size = layout.size
        self.part = slice(above_active * size, active * size)
        """Where the weights of A are that these rows have."""
        self.rest = slice((active + above_explored) * size, self.learning * size)
        self.active = numbers[above_active:active]
        """Units of A in these rows, numbered from the first of them."""
        self.both = torch.cat([self.active, numbers[active + above_explored :]])
        """Those and the others that learn."""

    def product(self, weights: Tensor, x_iN: Tensor) -> Tensor:
        """[in, N] -> [r, N]."""
        raise NotImplementedError

    def input_gradient(self, weights: Tensor, gradient_rN: Tensor) -> Tensor:
        """[r, N] -> [in, N]."""
        raise NotImplementedError

    def gradient_at(self, x_iN: Tensor, gradient_rN: Tensor) -> Tensor:
        """Gradient of the weights `both`, flat; of single weights from the whole matrix's."""
        assert self.layout.size == 1
        return (gradient_rN @ x_iN.T).flatten()[self.both]

    def weight_gradient(self, x_iN: Tensor, gradient_rN: Tensor) -> Tensor:
        """Gradient of all weights that learn, flat; 0 in other rows."""
        here = self.gradient_at(x_iN, gradient_rN)
        total = self.learning * self.layout.size
        if len(here) == total:
            return here
        whole = here.new_zeros(total)
        count = self.part.stop - self.part.start
        whole[self.part], whole[self.rest] = here[:count], here[count:]
        return whole


PatternMaker = Callable[[Tensor, int, Layout, int], Pattern]


class PatternProduct(torch.autograd.Function):
    """x [..., in] times the rows of a pattern, [..., r], with the gradient of all that learns."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, bias: Tensor | None, pattern: Pattern
    ) -> Tensor:
        """See the class."""
        x_iN = feature_major(x)
        y_rN = pattern.product(weights[pattern.part], x_iN)
        if bias is not None:
            y_rN += bias[:, None]
        ctx.save_for_backward(x_iN, weights)
        ctx.pattern, ctx.shape = pattern, x.shape
        return no_view(y_rN.T.view(*x.shape[:-1], -1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, the weights and the bias."""
        x_iN, weights = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        gradient_rN = feature_major(gradient)
        x_gradient = weights_gradient = bias_gradient = None
        if ctx.needs_input_grad[0]:
            gradient_iN = pattern.input_gradient(weights[pattern.part], gradient_rN)
            x_gradient = gradient_iN.T.view(ctx.shape)
        if ctx.needs_input_grad[1]:
            weights_gradient = pattern.weight_gradient(x_iN, gradient_rN)
        if ctx.needs_input_grad[2]:
            bias_gradient = gradient_rN.sum(1)
        return x_gradient, weights_gradient, bias_gradient, None


def feature_major(x: Tensor) -> Tensor:
    """[..., features] -> [features, N], contiguous; no copy where x is one of ours."""
    return x.flatten(0, -2).T.contiguous()
