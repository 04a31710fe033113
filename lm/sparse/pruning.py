"""One-shot magnitude pruning: the smallest weights of a trained model become zero."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from lm.model.components import Linear
from lm.sparse.sparse_config import Kind, Scope
from lm.sparse.topkast import kind_of


def dense_matrices(model: nn.Module, kinds: Collection[Kind]) -> dict[str, Linear]:
    """Dense matrices of these kinds by the name of their module."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and kind_of(name) in kinds
    }


def largest(
    weights: Mapping[str, Tensor], density: float, scope: Scope = "matrix"
) -> dict[str, Tensor]:
    """Masks of the largest weights by magnitude; of equal ones the first.

    Args:
        weights: matrices by name.
        density: share of the weights that is kept.
        scope: whether that is of each matrix, or of all together.
    """
    if scope == "matrix":
        return {name: _top(w.flatten(), density).view_as(w) for name, w in weights.items()}
    parts = list(weights.values())
    mask = _top(torch.cat([part.flatten() for part in parts]), density)
    masks = mask.split([part.numel() for part in parts])
    return {name: m.view_as(w) for (name, w), m in zip(weights.items(), masks, strict=True)}


def _top(weights: Tensor, density: float) -> Tensor:
    order = weights.abs().argsort(descending=True, stable=True)
    mask = torch.zeros_like(weights, dtype=torch.bool)
    mask[order[: round(density * len(weights))]] = True
    return mask


@torch.no_grad()
def prune(
    model: nn.Module, sparsity: float, kinds: Collection[Kind], scope: Scope = "matrix"
) -> float:
    """Set the smallest weights of a dense model's matrices to zero, in place.

    Args:
        model: with dense matrices, such as lm.inference.loading gives.
        sparsity: share of the weights that is to be zero.
        kinds: of the matrices that are pruned.
        scope: whether that is of each matrix, or of all together.

    Returns:
        The share of their weights that is zero then.

    Raises:
        ValueError: a share outside [0, 1], or no matrix of these kinds.
    """
    matrices = dense_matrices(model, kinds)
    if not matrices:
        raise ValueError(f"the model has no matrix of the kinds {', '.join(kinds)}")
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be between 0 and 1, not {sparsity}")
    weights = {name: linear.weight for name, linear in matrices.items()}
    for name, mask in largest(weights, 1 - sparsity, scope).items():
        matrices[name].weight.mul_(mask)
    zeros = sum(int((weight == 0).sum()) for weight in weights.values())
    return zeros / sum(weight.numel() for weight in weights.values())
