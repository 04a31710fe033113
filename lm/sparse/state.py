"""What a checkpoint holds of sparse matrices, how it is put back, and their dense form.

Most weights outside B are what they were when training began. So the reservoirs are written once,
as a base, and after that only the units that have been in B since and have left it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from data.common.tensors import TensorFile
from lm.model.components import Linear
from lm.sparse.powerprop import PowerLinear
from lm.sparse.sparse_linear import SparseLinear
from lm.sparse.topkast import TopKast


def base(topkast: TopKast) -> dict[str, Tensor]:
    """A copy of all reservoirs by the name of their parameter; `sets` count from here on."""
    for matrix in topkast.matrices.values():
        matrix.changed.become(matrix.module.index.cpu())
    return {name: m.reservoir.clone() for name, m in topkast.matrices.items()}


def sets(topkast: TopKast) -> dict[str, Tensor]:
    """Of each matrix, by `parameter/entry`: index, the sets; ever, a bit for each unit that has
    been in A; left and left_values, what has left B since `base`.
    """
    tensors = {}
    for name, matrix in topkast.matrices.items():
        left = matrix.changed.flags()
        left[matrix.module.index.cpu().long()] = False
        numbers = left.nonzero()[:, 0]
        tensors[f"{name}/index"] = matrix.module.index.to("cpu", copy=True)
        tensors[f"{name}/ever"] = matrix.ever.packed.clone()
        tensors[f"{name}/left"] = numbers.int()
        tensors[f"{name}/left_values"] = matrix.reservoir[numbers]
    return tensors


def require_sets(topkast: TopKast, file: TensorFile) -> None:
    """See that a file has the sets of these matrices.

    Raises:
        ValueError: it lacks some, or has sets of other matrices or numbers that no unit has.
    """
    for name, matrix in topkast.matrices.items():
        units = matrix.layout.units
        index = file.take(f"{name}/index", torch.int32, matrix.module.index.shape)
        left = file.take(f"{name}/left", torch.int32, (None,))
        file.take(f"{name}/left_values", None, (len(left), matrix.layout.size))
        file.take(f"{name}/ever", torch.uint8, matrix.ever.packed.shape)
        for numbers in (index, left):
            inside = bool(((numbers >= 0) & (numbers < units)).all())
            if not inside or len(numbers.unique()) < len(numbers):
                raise ValueError(
                    f"{file.path} chooses units of {name} that there are not; {file.mend}"
                )


def require_base(topkast: TopKast, file: TensorFile) -> None:
    """See that a file has the reservoirs of these matrices; ValueError otherwise."""
    for name, matrix in topkast.matrices.items():
        if not file.take(name, None, matrix.reservoir.shape).isfinite().all():
            raise ValueError(f"{file.path} has numbers in {name} that are not finite; {file.mend}")


def put_back(topkast: TopKast, base: Mapping[str, Tensor], sets: Mapping[str, Tensor]) -> None:
    """Make sets and reservoirs what they were when `base` and `sets` were taken."""
    put_sets(topkast, sets)
    for name, matrix in topkast.matrices.items():
        matrix.reservoir.copy_(base[name])
        left = sets[f"{name}/left"].long()
        matrix.reservoir[left] = sets[f"{name}/left_values"]
        matrix.ever.packed.copy_(sets[f"{name}/ever"])
        matrix.changed.become(torch.cat([left, sets[f"{name}/index"].long()]))


def put_sets(topkast: TopKast, sets: Mapping[str, Tensor]) -> None:
    """Make the sets alone what they were when `sets` were taken: enough to predict."""
    for name, matrix in topkast.matrices.items():
        matrix.module.choose(sets[f"{name}/index"])


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
