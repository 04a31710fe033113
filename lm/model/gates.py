"""What joins a sub-layer to the residual stream: a sum, or a gate of GTrXL.

A gate (Parisotto et al., arXiv 1910.06764, section 3.2) takes the stream x and the sub-layer's
output y, and y passes a ReLU first: with the norm on the sub-layer's input two linear maps would
follow each other otherwise. The bias b starts so that the layer is close to the identity: at 2 in
the GRU gate and at 1 in the others. To add one, write it and enter it in GATES.

Shapes: B lanes, T tokens, D width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lm.model.components import Linear, Residual
from lm.model.model_config import GateName


class ReluGate(nn.Module):
    """x + relu(y): TrXL-I, which has no gate."""

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """Join both."""
        return x_BTD + F.relu(y_BTD)


class InputGate(nn.Module):
    """sigmoid(W x) x + y."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stream = Linear(width, width, bias=False)

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """Join both."""
        return torch.sigmoid(self.stream(x_BTD)) * x_BTD + F.relu(y_BTD)


class OutputGate(nn.Module):
    """x + sigmoid(W x - b) y."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stream = Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """Join both."""
        return x_BTD + torch.sigmoid(self.stream(x_BTD) - self.bias) * F.relu(y_BTD)


class HighwayGate(OutputGate):
    """z x + (1 - z) y with z = sigmoid(W x + b)."""

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """Join both."""
        carry = torch.sigmoid(self.stream(x_BTD) + self.bias)
        return carry * x_BTD + (1 - carry) * F.relu(y_BTD)


class SigmoidTanhGate(nn.Module):
    """x + sigmoid(W y - b) tanh(U y)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sublayer = Linear(width, 2 * width, bias=False)
        self.bias = nn.Parameter(torch.ones(width))

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """Join both."""
        opening, candidate = self.sublayer(F.relu(y_BTD)).chunk(2, dim=-1)
        return x_BTD + torch.sigmoid(opening - self.bias) * torch.tanh(candidate)


class GruGate(nn.Module):
    """(1 - z) x + z h with r = sigmoid(W_r y + U_r x), z = sigmoid(W_z y + U_z x - b) and
    h = tanh(W_h y + U_h (r x)).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sublayer = Linear(width, 3 * width, bias=False)
        self.stream = Linear(width, 2 * width, bias=False)
        self.reset_stream = Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.full((width,), 2.0))

    def forward(self, x_BTD: Tensor, y_BTD: Tensor) -> Tensor:
        """Join both."""
        y_r, y_z, y_h = self.sublayer(F.relu(y_BTD)).chunk(3, dim=-1)
        x_r, x_z = self.stream(x_BTD).chunk(2, dim=-1)
        reset = torch.sigmoid(y_r + x_r)
        update = torch.sigmoid(y_z + x_z - self.bias)
        candidate = torch.tanh(y_h + self.reset_stream(reset * x_BTD))
        return (1 - update) * x_BTD + update * candidate


GATES: dict[GateName, Callable[[int], nn.Module]] = {
    "none": lambda _: Residual(),
    "relu": lambda _: ReluGate(),
    "input": InputGate,
    "output": OutputGate,
    "highway": HighwayGate,
    "sigmoid_tanh": SigmoidTanhGate,
    "gru": GruGate,
}
