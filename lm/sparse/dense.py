"""Back to dense matrices, for prediction."""

import torch
from torch import nn

from lm.model.linear import Linear
from lm.sparse.linear import SparseLinear
from lm.sparse.powerprop import PowerLinear


@torch.no_grad()
def densify(model: nn.Module) -> None:
    """Give every sparse or reparameterised matrix of a model its dense form, in place.

    Of sparse ones that is A: what they predict with.
    """
    for name, module in list(model.named_modules()):
        if not isinstance(module, SparseLinear | PowerLinear):
            continue
        dense = Linear(module.in_features, module.out_features, bias=module.bias is not None)
        dense.weight = nn.Parameter(module.matrix())
        dense.register_parameter("bias", module.bias)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, dense)
