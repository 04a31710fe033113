"""What the tests of sparse weights share: a model to sparsify, and a plain optimiser as a store."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lm.model.components import Linear
from lm.sparse.powerprop import PowerAdamW, power_group
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.sparse.topkast import TopKast, sparsify


class Holder(nn.Module):
    """One matrix where a model has its feed-forward ones."""

    def __init__(self, linear: Linear) -> None:
        super().__init__()
        layer = nn.Module()
        layer.feedforward = nn.Module()
        layer.feedforward.inner = linear
        self.blocks = nn.ModuleList([layer])

    @property
    def linear(self) -> nn.Module:
        return self.get_submodule("blocks.0.feedforward.inner")


def holder(
    weight: Tensor, sparse: SparseConfig, power: PowerConfig | None = None, bias: bool = True
) -> tuple[Holder, TopKast]:
    """A matrix in the form that the configs ask for."""
    dense = Linear(weight.shape[1], weight.shape[0], bias=bias, dtype=weight.dtype)
    with torch.no_grad():
        dense.weight.copy_(weight)
    model = Holder(dense)
    return model, sparsify(model, sparse, power or PowerConfig(), seed=5)


def optimizer_of(model: nn.Module, power: PowerConfig, lr: float, decay: float) -> PowerAdamW:
    """AdamW over all parameters; biases have neither power nor decay."""
    matrices = [p for name, p in model.named_parameters() if not name.endswith("bias")]
    others = [p for name, p in model.named_parameters() if name.endswith("bias")]
    group = {"params": matrices, "weight_decay": decay}
    if power.alpha > 1:
        group = power_group(group, power)
    return PowerAdamW([group, {"params": others, "weight_decay": 0.0}], lr=lr, eps=1e-8)


class PlainStore:
    """Parameters and moments where plain torch has them."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = dict(model.named_parameters()), optimizer

    def read(self, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        parameter = self.parameters[name]
        state = self.optimizer.state.get(parameter, {})
        return parameter.detach(), {key: v for key, v in state.items() if key != "step"}

    def write(self, name: str, values: Tensor, moments: Mapping[str, Tensor]) -> None:
        parameter = self.parameters[name]
        with torch.no_grad():
            parameter.copy_(values)
        for key, moment in moments.items():
            self.optimizer.state[parameter][key].copy_(moment)
