"""Products with a sparse matrix by way of a dense one that lives only while it is used.

The matrix is made from the weights of A when a product needs it, in the backward pass again, so
that between the two nothing of its size is held. Putting the weights into place costs well below a
hundredth of the product for usual numbers of tokens.
"""

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
