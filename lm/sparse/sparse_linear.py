"""A linear map whose only parameter are the weights of its backward set."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lm.model.components import LinearMap
from lm.sparse.layout import Layout
from lm.sparse.powerprop import effective
from lm.sparse.product import DenseProduct, Pattern, PatternMaker, PatternProduct, Scatter
from lm.sparse.sparse_config import PowerConfig


class SparseLinear(LinearMap):
    """y = W x + b where W has the weights of A alone, and all of B ⊃ A learn.

    `values` holds the parameters of B by unit, [(active + explored) size]: those of A first, in the
    matrix's order, then the others likewise. `index` says which units they are. A refresh changes
    both in place and neither's length, so whoever holds the parameter goes on with it.
    """

    index: Tensor

    def __init__(
        self,
        layout: Layout,
        counts: tuple[int, int],
        bias: nn.Parameter | None,
        penalty: tuple[float, float],
        power: PowerConfig,
    ) -> None:
        """Without weights: lm.sparse.topkast gives them.

        Args:
            layout: units of the matrix.
            counts: units of A, and further units of B.
            bias: the dense map's.
            penalty: coefficient of the penalty on A and on the rest of B.
            power: the parameterisation.
        """
        super().__init__()
        self.layout, self.power, self.coefficients = layout, power, penalty
        self.in_features, self.out_features = layout.in_features, layout.out_features
        self.active, self.explored = counts
        self.exploring = True
        """Whether the weights of B outside A learn; if not, nothing moves them."""
        self.values = nn.Parameter(torch.zeros(sum(counts) * layout.size))
        index = torch.zeros(sum(counts), dtype=torch.int32)
        self.register_buffer("index", index, persistent=False)
        self.bias = bias
        self.make_pattern: PatternMaker | None = None
        """Of the sparse kernels to use; none: the dense product. Set by lm.sparse.routes."""
        self.patterns: dict[tuple[int, bool], Pattern] = {}
        """Those that were made, by first row and `exploring`."""

    def choose(self, index: Tensor) -> None:
        """Have other sets of the same sizes."""
        self.index.copy_(index)
        self.patterns.clear()

    def weights(self) -> Tensor:
        """Effective weights of B, flat like `values`."""
        return effective(self.values, self.power)

    def learning(self) -> tuple[Tensor, Tensor]:
        """Weights and index of what learns: B, or A alone when exploration has stopped."""
        weights, index = self.weights(), self.index
        if self.exploring:
            return weights, index
        return weights[: self.active * self.layout.size], index[: self.active]

    def matrix(self) -> Tensor:
        """The matrix of A [out, in], dense."""
        weights, index = self.learning()
        matrix: Tensor = Scatter.apply(weights, index, self.active, self.layout)
        return matrix

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return self._product(x, self.learning(), self.bias, 0)

    def rows(self, inputs: Sequence[Tensor], first: int, constant: bool = False) -> list[Tensor]:
        """See LinearMap.rows; one product for all inputs, which have three dimensions and differ in
        the second only.
        """
        weights, index = self.learning()
        learning = (weights.detach() if constant else weights, index)
        product = self._product(torch.cat(list(inputs), dim=1), learning, None, first)
        return list(product.split([x.shape[1] for x in inputs], dim=1))

    def _product(
        self, x: Tensor, learning: tuple[Tensor, Tensor], bias: Tensor | None, first: int
    ) -> Tensor:
        weights, index = learning
        if self.make_pattern is None:
            dense: Tensor = DenseProduct.apply(
                x, weights, index, bias, self.active, self.layout, first
            )
            return dense
        place = (first, self.exploring)
        if place not in self.patterns:
            self.patterns[place] = self.make_pattern(index, self.active, self.layout, first)
        sparse: Tensor = PatternProduct.apply(x, weights, bias, self.patterns[place])
        return sparse

    def penalty(self) -> Tensor | None:
        """Exploration penalty: half the squared weights times their coefficients."""
        on_active, on_explored = self.coefficients
        if on_active == 0:
            return None
        weights = self.weights().float() if self.values.dtype == torch.bfloat16 else self.weights()
        active, explored = weights.tensor_split([self.active * self.layout.size])
        total = on_active * active.square().sum()
        if self.exploring and self.explored:
            total = total + on_explored * explored.square().sum()
        return total / 2
