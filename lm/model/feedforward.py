"""The feed-forward sub-layer, plain or gated."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.config import GATED, Activation, ModelConfig
from lm.model.linear import Linear

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
