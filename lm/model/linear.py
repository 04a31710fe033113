"""Linear maps as the rest of the model sees them, whatever form their weights are kept in.

The model calls its matrices through `LinearMap` alone, so that one whose weights are kept in
another form, such as sparsely, may take a dense one's place after the model has been built.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearMap(nn.Module):
    """y = W x + b with a matrix W [out, in] that a subclass knows how to make."""

    in_features: int
    out_features: int

    def matrix(self) -> Tensor:
        """W [out, in], through which a gradient reaches the parameters."""
        raise NotImplementedError

    def rows(self, inputs: Sequence[Tensor], first: int, constant: bool = False) -> list[Tensor]:
        """Several inputs times the rows of W from `first` on: each [..., in] -> [..., out - first],
        no bias.

        Args:
            inputs: one or more.
            first: the first row.
            constant: let no gradient reach W.
        """
        weight = self.matrix()[first:]
        weight = weight.detach() if constant else weight
        return [F.linear(x, weight) for x in inputs]

    def penalty(self) -> Tensor | None:
        """What is added to the loss for these weights, once an update; None for nothing."""
        return None


class Linear(nn.Linear, LinearMap):
    """A linear map with a dense matrix as its parameter."""

    def matrix(self) -> Tensor:
        """The parameter itself."""
        return self.weight


def total_penalty(module: nn.Module) -> Tensor | None:
    """The penalties of all linear maps inside a module together; None if there are none."""
    penalties = []
    for part in module.modules():
        penalty = part.penalty() if isinstance(part, LinearMap) else None
        if penalty is not None:
            penalties.append(penalty)
    return torch.stack(penalties).sum() if penalties else None
