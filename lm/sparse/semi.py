"""Two of four weights in hardware: NVIDIA's sparse tensor cores multiply such a matrix at up to
twice the speed of a dense one.

That is the forward product; the transposed matrix has not two of four, so gradients are dense.
"""

from torch import Tensor
from torch.sparse import to_sparse_semi_structured

from lm.sparse.patterns import Pattern


class SemiPattern(Pattern):
    """Forward through the sparse tensor cores, gradients through the dense matrix."""

    def product(self, weights: Tensor, x_iN: Tensor) -> Tensor:
        """See Pattern."""
        y_rN: Tensor = to_sparse_semi_structured(self._matrix(weights)) @ x_iN
        return y_rN

    def input_gradient(self, weights: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        return self._matrix(weights).T @ gradient_rN

    def gradient_at(self, x_iN: Tensor, gradient_rN: Tensor) -> Tensor:
        """See Pattern."""
        return (gradient_rN @ x_iN.T).flatten()[self.both]

    def _matrix(self, weights: Tensor) -> Tensor:
        matrix = weights.new_zeros(self.rows * self.layout.in_features)
        matrix[self.active] = weights
        return matrix.view(self.rows, -1)
