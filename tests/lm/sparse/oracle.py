"""Top-KAST and Powerpropagation on one dense matrix with masks, in float64 and by the definitions.

Everything is dense: parameters, masks, gradients and Adam's moments. Sets are chosen by Python's
sort. Slow, and nothing like the product in structure; that is compared with it.
"""

import torch
from torch import Tensor

from lm.sparse.sparse_config import PowerConfig, SparseConfig


def unit_of(row: int, column: int, columns: int, block: int) -> int:
    """Number of the unit that a weight is in."""
    return (row // block) * (columns // block) + column // block


class MaskedMatrix:
    """A dense matrix whose product uses A and whose update moves B."""

    def __init__(self, weight: Tensor, config: SparseConfig, power: PowerConfig) -> None:
        assert config.density is not None
        self.config, self.power = config, power
        self.density, self.exploration = config.density, config.exploration
        self.parameter = weight.sign() * weight.abs() ** (1 / power.alpha)
        self.block = config.block if config.granularity == "block" else 1
        rows, columns = weight.shape
        self.units = torch.tensor(
            [[unit_of(r, c, columns, self.block) for c in range(columns)] for r in range(rows)]
        )
        self.first, self.second = torch.zeros_like(weight), torch.zeros_like(weight)
        self.steps = 0
        self.exploring = config.stop_exploration != 0
        self.active, self.backward = self.choose(None)

    def effective(self) -> Tensor:
        """The weights."""
        return self.parameter.sign() * self.parameter.abs() ** self.power.alpha

    def seen(self) -> Tensor:
        """The matrix of the product, a leaf whose gradient is dense."""
        return (self.effective() * self.active).requires_grad_()

    def penalty_gradient(self) -> Tensor:
        """Of the exploration penalty with respect to the weights."""
        explored = self.backward & ~self.active if self.exploring else torch.zeros_like(self.active)
        share = self.active.double() + explored.double() / self.density
        return self.config.penalty * share * self.effective()

    def choose(self, noise: Tensor | None) -> tuple[Tensor, Tensor]:
        """Masks of A and B; `noise` has the scores of units for the rest of B."""
        count = int(self.units.max()) + 1
        scores = [0.0] * count
        for unit, weight in zip(
            self.units.flatten().tolist(), self.effective().flatten().tolist(), strict=True
        ):
            scores[unit] += weight**2
        active, explored = set[int](), set[int]()
        for group, wanted, more in self._quotas(count):
            ranked = sorted(group, key=lambda unit: (-scores[unit], unit))
            active |= set(ranked[:wanted])
            rest = ranked[wanted:]
            if noise is not None:
                rest = sorted(rest, key=lambda unit: (-noise[unit].item(), unit))
            explored |= set(rest[:more])
        is_active = torch.tensor([unit in active for unit in range(count)])[self.units]
        is_explored = torch.tensor([unit in explored for unit in range(count)])[self.units]
        return is_active, is_active | is_explored

    def _quotas(self, count: int) -> list[tuple[range, int, int]]:
        """Groups of units that compete, with the sizes of A and of the rest of B."""
        if self.config.granularity == "2:4":
            more = round(self.exploration * 4)
            return [(range(start, start + 4), 2, more) for start in range(0, count, 4)]
        active = max(1, round(self.density * count))
        both = max(active, round((self.density + self.exploration) * count))
        return [(range(count), active, both - active)]

    def update(self, gradient: Tensor, lr: float, decay: float) -> None:
        """AdamW on what learns, from the gradient of the product's matrix."""
        learns = self.backward if self.exploring else self.active
        gradient = (gradient + self.penalty_gradient()) * learns
        alpha = self.power.alpha
        slope = alpha * self.parameter.abs() ** (alpha - 1)
        if self.power.factor == "plain":
            gradient = gradient * slope
        self.steps += 1
        self.first = torch.where(learns, 0.9 * self.first + 0.1 * gradient, self.first)
        self.second = torch.where(learns, 0.999 * self.second + 0.001 * gradient**2, self.second)
        mean = self.first / (1 - 0.9**self.steps)
        root = (self.second / (1 - 0.999**self.steps)).sqrt()
        step = lr * mean / (root + 1e-8)
        if self.power.factor == "after":
            step = step * slope
        kept = 1 - lr * decay
        if self.power.decay == "weight" and alpha > 1:
            kept = kept ** (1 / alpha)
        self.parameter = torch.where(learns, self.parameter * kept - step, self.parameter)

    def refresh(self, noise: Tensor | None, exploring: bool) -> None:
        """New sets; what did not learn before or does not learn now has no moments."""
        self.exploring = exploring
        active, backward = self.choose(noise)
        before = self.backward if exploring else self.active
        after = backward if exploring else active
        kept = before & after
        self.first, self.second = self.first * kept, self.second * kept
        self.active, self.backward = active, backward
