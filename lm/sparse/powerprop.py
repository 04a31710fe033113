"""Powerpropagation: weights as powers of parameters (Schwarz et al., arXiv 2110.00296).

With w = sign(p) |p| ** alpha the chain rule scales the gradient of p by alpha |p| ** (alpha - 1),
so that the rich get richer and small weights can be pruned with little loss.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from lm.model.components import Linear
from lm.sparse.sparse_config import PowerConfig


def power(parameter: Tensor, alpha: float) -> Tensor:
    """sign(p) |p| ** alpha."""
    return parameter if alpha == 1 else parameter.sign() * parameter.abs().pow(alpha)


def root(weight: Tensor, alpha: float) -> Tensor:
    """The parameter of a weight: the inverse of `power`."""
    return weight if alpha == 1 else weight.sign() * weight.abs().pow(1 / alpha)


def slope(parameter: Tensor, alpha: float) -> Tensor:
    """Derivative of `power`, alpha |p| ** (alpha - 1)."""
    return parameter.abs().pow_(alpha - 1).mul_(alpha)


class _Power(torch.autograd.Function):
    """`power` whose gradient is right at 0, where autograd's is NaN for alpha below 2, and goes
    through without the slope if the optimiser applies that.
    """

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, alpha: float, through: bool) -> Tensor:
        ctx.alpha, ctx.through = alpha, through
        if not through:
            ctx.save_for_backward(parameter)
        return power(parameter, alpha)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        if ctx.through:
            return gradient, None, None
        (parameter,) = ctx.saved_tensors
        return gradient * slope(parameter, ctx.alpha), None, None


def effective(parameter: Tensor, config: PowerConfig) -> Tensor:
    """Weights of parameters.

    With config.factor after, what reaches the parameter is the gradient of the weight, and
    PowerAdamW applies the slope to the update.
    """
    if config.alpha == 1:
        return parameter
    weight: Tensor = _Power.apply(parameter, config.alpha, config.factor == "after")
    return weight


class PowerLinear(Linear):
    """A dense linear map whose matrix is a power of its parameter."""

    def __init__(self, dense: Linear, config: PowerConfig) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = dense.in_features, dense.out_features
        self.config = config
        self.weight = nn.Parameter(root(dense.weight.detach(), config.alpha))
        self.bias = dense.bias

    def matrix(self) -> Tensor:
        """The effective weights [out, in]."""
        return effective(self.weight, self.config)

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.matrix(), self.bias)


class PowerAdamW(torch.optim.AdamW):
    """AdamW whose groups with a `power` move the weights that their parameters stand for.

    Everything it does is done to each element alone, so that it is the same on the flat parts of
    parameters that DeepSpeed's stages hand to an optimiser as on whole ones.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter.

        With lr the rate, d the decay and u AdamW's normalised gradient, p becomes
        s p - lr u f, where f is the slope with power.factor after and 1 otherwise, and s shrinks
        the weight (power.decay weight) or p itself to 1 - lr d of what it was.
        """
        powered = [group for group in self.param_groups if "power" in group]
        before = []
        for group in powered:
            pairs = [(p, p.clone()) for p in group["params"] if p.grad is not None]
            before.append(pairs)
            for parameter, _ in pairs:
                # From zero the step leaves the update alone, without rounding.
                parameter.zero_()
        result = super().step(closure)
        for group, pairs in zip(powered, before, strict=True):
            power: PowerConfig = group["power"]
            kept = 1 - group["lr"] * group["power_decay"]
            if power.decay == "weight":
                kept **= 1 / power.alpha
            for parameter, old in pairs:
                if power.factor == "after":
                    parameter.mul_(slope(old, power.alpha))
                parameter.add_(old.mul_(kept))
        return result


def power_group(group: dict[str, Any], power: PowerConfig) -> dict[str, Any]:
    """A parameter group of AdamW as one of PowerAdamW whose parameters have a power."""
    group = {**group, "weight_decay": 0.0, "power_decay": group["weight_decay"], "power": power}
    return group if power.lr is None else {**group, "lr": power.lr, "peak_lr": power.lr}
