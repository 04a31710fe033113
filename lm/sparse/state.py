"""What a checkpoint holds of sparse matrices beside their parameters, and how it is put back.

Most weights outside B are what they were when training began. So the reservoirs are written once,
as a base, and after that only the units that have been in B since and have left it.
"""

from collections.abc import Mapping

from torch import Tensor

from lm.sparse.topkast import TopKast


def base(topkast: TopKast) -> dict[str, Tensor]:
    """A copy of all reservoirs by the name of their parameter; `sets` count from here on."""
    for matrix in topkast.matrices.values():
        matrix.changed.clear()
        matrix.changed.add(matrix.module.index.cpu())
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


def put_back(topkast: TopKast, base: Mapping[str, Tensor], sets: Mapping[str, Tensor]) -> None:
    """Make sets and reservoirs what they were when `base` and `sets` were taken."""
    put_sets(topkast, sets)
    for name, matrix in topkast.matrices.items():
        matrix.reservoir.copy_(base[name])
        left = sets[f"{name}/left"].long()
        matrix.reservoir[left] = sets[f"{name}/left_values"]
        matrix.ever.packed.copy_(sets[f"{name}/ever"])
        matrix.changed.clear()
        matrix.changed.add(left)
        matrix.changed.add(matrix.module.index.cpu())


def put_sets(topkast: TopKast, sets: Mapping[str, Tensor]) -> None:
    """Make the sets alone what they were when `sets` were taken: enough to predict."""
    for name, matrix in topkast.matrices.items():
        matrix.module.choose(sets[f"{name}/index"])
