"""What layers are made of: linear maps, norms and the feed-forward sub-layer.

The model calls its matrices through `LinearMap` alone, so that one whose weights are kept in
another form, such as sparsely, may take a dense one's place after the model has been built.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.model_config import GATED, Activation, ModelConfig


def make_norm(config: ModelConfig) -> nn.Module:
    """A norm over the width of the model, [..., D] -> [..., D]."""
    if config.norm_kind == "rms":
        return nn.RMSNorm(config.width, config.norm_epsilon)
    return nn.LayerNorm(config.width, config.norm_epsilon)


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


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    # In place: nothing else reads the largest tensor of a layer.
    "relu": F.relu_,
    "gelu": F.gelu,
    "silu": F.silu,
    "swiglu": F.silu,
    "geglu": F.gelu,
}


class FeedForward(nn.Module):
    """Two linear maps with a non-linearity f between them.

    Gated, the first map makes two halves a and b and the second reads f(a) b (GLU variants,
    Shazeer, arXiv 2002.05202).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gated = config.activation in GATED
        self.activation: Callable[[Tensor], Tensor] = ACTIVATIONS[config.activation]
        inner, bias = config.feedforward * (2 if self.gated else 1), config.feedforward_bias
        self.inner = Linear(config.width, inner, bias=bias)
        self.outer = Linear(config.feedforward, config.width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        # As a matrix, because a map of [B, T, D] returns a view; if that is changed in place,
        # autograd copies the whole of it several times on the way back.
        inner = self.inner(x_BTD.flatten(0, -2))
        if self.gated:
            opening, value = inner.chunk(2, dim=-1)
            active = self.activation(opening) * value
        else:
            active = self.activation(inner)
        hidden: Tensor = self.outer(active)
        return hidden.view(x_BTD.shape)
