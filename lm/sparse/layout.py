"""How a matrix is cut into units, and which units are chosen.

A unit is what enters or leaves a set as a whole: a weight, or a square block of them. Weights are
kept by unit, [units, size], in row-major order of the units and, inside one, of its weights.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lm.sparse.sparse_config import Granularity

GROUP = 4
"""Consecutive weights of a row of which granularity 2:4 puts two into A."""


@dataclass(frozen=True)
class Layout:
    """The units of a matrix [out, in].

    Raises:
        ValueError: a side of the matrix that is no multiple of the blocks' or groups'.
    """

    out_features: int
    in_features: int
    granularity: Granularity = "unstructured"
    block: int = 1
    """Side of a unit: 1 unless granularity is block."""

    def __post_init__(self) -> None:
        assert self.block == 1 or self.granularity == "block"
        if self.out_features % self.block or self.in_features % self.block:
            raise ValueError(
                f"sparse.block {self.block} must divide both sides of every sparse matrix; one is "
                f"{self.out_features} x {self.in_features}"
            )
        if self.granularity == "2:4" and self.in_features % GROUP:
            raise ValueError(
                "sparse.granularity 2:4 needs matrices with a multiple of 4 inputs; one has "
                f"{self.in_features}"
            )

    @property
    def size(self) -> int:
        """Weights of a unit."""
        return self.block**2

    @property
    def units(self) -> int:
        """Units of the matrix."""
        return self.out_features * self.in_features // self.size

    @property
    def columns(self) -> int:
        """Units of a row of units."""
        return self.in_features // self.block

    def counts(self, density: float, exploration: float) -> tuple[int, int]:
        """Units of A and of the rest of B for shares D and M; A has at least one."""
        active = max(1, round(density * self.units))
        return active, max(active, round((density + exploration) * self.units)) - active

    def to_units(self, matrix: Tensor) -> Tensor:
        """[out, in] -> [units, size]; a view where units are single weights."""
        if self.block == 1:
            return matrix.reshape(-1, 1)
        rows = matrix.view(-1, self.block, self.columns, self.block)
        return rows.transpose(1, 2).reshape(self.units, self.size)

    def to_matrix(self, units: Tensor) -> Tensor:
        """The inverse of `to_units`."""
        if self.block == 1:
            return units.view(self.out_features, self.in_features)
        blocks = units.view(-1, self.columns, self.block, self.block)
        return blocks.transpose(1, 2).reshape(self.out_features, self.in_features)

    def choose(self, scores: Tensor, active: int, explored: int, noise: Tensor | None) -> Tensor:
        """The units with the highest scores; of equal ones, the first in row-major order.

        Args:
            scores: of every unit, at least 0.
            active: units of A.
            explored: further units of B.
            noise: of every unit, at least 0; given, the rest of B has the highest of these.

        Returns:
            Numbers of the units, int32: A in ascending order, then the rest of B likewise.
        """
        chosen = self._highest(scores, active)
        rest = torch.where(chosen, -1.0, scores if noise is None else noise.to(scores.dtype))
        further = self._highest(rest, explored)
        return torch.cat([chosen.nonzero()[:, 0], further.nonzero()[:, 0]]).int()

    def _highest(self, scores: Tensor, count: int) -> Tensor:
        """Mask of the `count` highest scores, of each group of four if granularity is 2:4."""
        if count == 0:
            return torch.zeros_like(scores, dtype=torch.bool)
        if self.granularity == "2:4":
            groups = scores.view(-1, GROUP)
            best = groups.sort(dim=1, descending=True, stable=True).indices
            best = best[:, : count // len(groups)]
            mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, best, True)
            return mask.flatten()
        threshold = scores.topk(count, sorted=False).values.min()
        mask = scores > threshold
        ties = (scores == threshold).nonzero()[:, 0]
        mask[ties[: count - int(mask.sum())]] = True
        return mask
