"""EfficientPackNet: several tasks in one set of matrices of fixed size, a mask for each.

Powerpropagation (Schwarz et al., arXiv 2110.00296), section on continual learning: a task learns
with the weights that no earlier one has claimed, claims as few of the largest as it can do with,
earlier tasks' among them, and leaves the rest to later ones.
"""

import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lm.model.components import Linear
from lm.sparse.pruning import largest

Masks = dict[str, Tensor]
"""bool [out, in] by the name of a matrix's module."""


@dataclass(frozen=True)
class Packed:
    """What a task adds to what is stored."""

    masks: Masks
    """The weights that it predicts with."""
    claimed: dict[str, Tensor]
    """Parameters of those that it was the first to claim, in row-major order."""
    own: dict[str, Tensor]
    """Parameters outside the shared matrices, which each task has for itself."""

    def tensors(self) -> dict[str, Tensor]:
        """For a file; masks as compressed bits."""
        masks = {f"mask/{name}": compressed(mask) for name, mask in self.masks.items()}
        shapes = {f"shape/{name}": torch.tensor(m.shape) for name, m in self.masks.items()}
        claimed = {f"claimed/{name}": values for name, values in self.claimed.items()}
        return masks | shapes | claimed | {f"own/{name}": p for name, p in self.own.items()}

    @staticmethod
    def of_tensors(tensors: Mapping[str, Tensor]) -> "Packed":
        """The inverse of `tensors`; ValueError where they are not what that gives."""

        def part(kind: str) -> dict[str, Tensor]:
            start = f"{kind}/"
            return {k.removeprefix(start): t for k, t in tensors.items() if k.startswith(start)}

        shapes, bits, claimed = part("shape"), part("mask"), part("claimed")
        if not shapes.keys() == bits.keys() == claimed.keys():
            raise ValueError("masks, shapes and claimed weights are not of the same matrices")
        masks = {name: expanded(bits[name], shape) for name, shape in shapes.items()}
        return Packed(masks, claimed, part("own"))


def compressed(mask: Tensor) -> Tensor:
    """A mask as bits, deflated, uint8."""
    packed = zlib.compress(np.packbits(mask.cpu().numpy()).tobytes(), level=9)
    return torch.from_numpy(np.frombuffer(packed, dtype=np.uint8).copy())


def expanded(bits: Tensor, shape: Tensor) -> Tensor:
    """The inverse of `compressed`; ValueError for bits of another number."""
    try:
        flat = np.frombuffer(zlib.decompress(bits.numpy().tobytes()), dtype=np.uint8)
    except zlib.error as error:
        raise ValueError(f"a mask is not deflated bits ({error})") from None
    rows, columns = shape.tolist()
    if len(flat) != -(-rows * columns // 8):
        raise ValueError("a mask has not a bit for each weight")
    mask = np.unpackbits(flat, count=rows * columns).astype(bool)
    return torch.from_numpy(mask).view(rows, columns)


class Capacity:
    """The shared matrices: which weights are claimed, and their parameters; 0 elsewhere."""

    def __init__(self, matrices: Mapping[str, Linear | Tensor]) -> None:
        """Nothing claimed yet of matrices, by the name of their module, or of masks like them."""
        like = {n: m.weight if isinstance(m, Linear) else m for n, m in matrices.items()}
        self.parameters = {name: torch.zeros(m.shape) for name, m in like.items()}
        self.claimed = {name: torch.zeros(m.shape, dtype=torch.bool) for name, m in like.items()}

    def add(self, task: Packed) -> None:
        """Take over what a task has claimed, after all before it; ValueError if it does not fit."""
        for name, mask in task.masks.items():
            if name not in self.claimed or mask.shape != self.claimed[name].shape:
                raise ValueError(f"{name} is packed as another matrix than there is")
            new = mask & ~self.claimed[name]
            if int(new.sum()) != task.claimed[name].numel():
                raise ValueError(f"{name} claims another number of weights than its mask has new")
            self.parameters[name][new] = task.claimed[name]
            self.claimed[name] |= mask

    @property
    def share(self) -> float:
        """Share of the weights that is claimed."""
        taken = sum(int(mask.sum()) for mask in self.claimed.values())
        return taken / sum(mask.numel() for mask in self.claimed.values())

    @torch.no_grad()
    def fill(self, model: nn.Module) -> None:
        """Put claimed weights into a model and leave its others as they are."""
        for name, claimed in self.claimed.items():
            weight = linear_at(model, name).weight
            ours = self.parameters[name].to(weight)
            weight.copy_(torch.where(claimed.to(weight.device), ours, weight))

    def guard(self, model: nn.Module) -> None:
        """Keep claimed weights from moving: their gradients are 0 from now on."""
        for name, claimed in self.claimed.items():
            weight = linear_at(model, name).weight
            weight.register_hook(_without(claimed.to(weight.device)))

    def pack(self, model: nn.Module, masks: Masks) -> Packed:
        """What a trained model adds under these masks."""
        claimed = {}
        for name, mask in masks.items():
            new = mask & ~self.claimed[name]
            claimed[name] = linear_at(model, name).weight.detach().cpu()[new]
        shared = {f"{name}.weight" for name in self.claimed}
        own = {
            name: parameter.detach().cpu().clone()
            for name, parameter in model.named_parameters()
            if name not in shared
        }
        return Packed(masks, claimed, own)

    @torch.no_grad()
    def unpack(self, model: nn.Module, task: Packed) -> None:
        """Make a model predict as it did when this task was packed, whatever came after."""
        for name, mask in task.masks.items():
            linear_at(model, name).weight.copy_(self.parameters[name] * mask)
        parameters = dict(model.named_parameters())
        for name, value in task.own.items():
            parameters[name].copy_(value)


def _without(claimed: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient.masked_fill(claimed, 0.0)


def linear_at(model: nn.Module, name: str) -> Linear:
    """A dense or powered matrix of a model."""
    module = model.get_submodule(name)
    assert isinstance(module, Linear)
    return module


def largest_masks(model: nn.Module, names: Collection[str], density: float) -> Masks:
    """Masks of the largest effective weights of each matrix."""
    with torch.no_grad():
        weights = {name: linear_at(model, name).matrix().cpu() for name in names}
    return largest(weights, density)


@contextmanager
def masked(model: nn.Module, masks: Masks) -> Iterator[None]:
    """A model with its matrices masked for a while."""
    weights = {name: linear_at(model, name).weight.data for name in masks}
    whole = {name: weight.clone() for name, weight in weights.items()}
    for name, mask in masks.items():
        weights[name].mul_(mask.to(weights[name].device))
    try:
        yield
    finally:
        for name, weight in whole.items():
            weights[name].copy_(weight)


def fewest(
    model: nn.Module,
    names: Collection[str],
    densities: Collection[float],
    acceptable: Callable[[], bool],
) -> tuple[float, Masks]:
    """The sparsest masks, of those tried from dense to sparse, before the first that is not good
    enough.

    Args:
        model: trained.
        names: of its shared matrices.
        densities: shares of each matrix that are tried, falling.
        acceptable: whether the model, with its matrices masked, is still good enough.

    Returns:
        Density and masks; all weights if not even the first was acceptable.
    """
    best, masks = 1.0, largest_masks(model, names, 1.0)
    for density in densities:
        tried = largest_masks(model, names, density)
        with masked(model, tried):
            if not acceptable():
                break
        best, masks = density, tried
    return best, masks
