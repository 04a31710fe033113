"""Sums and counts that stay whole until one division by what all ranks counted together."""

from collections.abc import Mapping

import torch
from torch import Tensor

from lm.objectives.objective import Term
from lm.training.dist import World

Pair = tuple[float, float]
"""Sum and count over all ranks."""


class Sums:
    """Named losses, each one pair or a pair a layer, gathered over back-propagations and ranks."""

    def __init__(self) -> None:
        self.pairs: dict[str, Tensor] = {}

    def add(self, losses: Mapping[str, Term]) -> None:
        """Add what one back-propagation read; every rank adds the same names."""
        for whole, term in losses.items():
            name = whole + "/" if term.total.ndim else whole
            pair = torch.stack([term.total.detach().double(), term.counted.double()])
            self.pairs[name] = self.pairs[name] + pair if name in self.pairs else pair

    def totals(self, world: World) -> dict[str, Pair]:
        """Sums over all ranks; those by layer are named `NAME/LAYER`."""
        wide = {name: pair.reshape(2, -1) for name, pair in self.pairs.items()}
        totals, counts = world.sum(torch.cat(list(wide.values()), dim=1)).tolist()
        pairs = iter(zip(totals, counts, strict=True))
        return {
            f"{name}{layer}" if name.endswith("/") else name: next(pairs)
            for name, columns in wide.items()
            for layer in range(columns.shape[1])
        }
