"""All weights of one sparse matrix, in host memory, and which of them its module has."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lm.sparse.powerprop import power
from lm.sparse.sparse_linear import SparseLinear


class Bits:
    """Which of the numbers 0 to count - 1 are in a set; unpacked only while it is used."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.packed = torch.zeros(-(-count // 8), dtype=torch.uint8)

    def add(self, numbers: Tensor) -> None:
        """Put numbers into the set."""
        flags = self.flags()
        flags[numbers.long()] = True
        self.packed.copy_(torch.from_numpy(np.packbits(flags.numpy())))

    def become(self, numbers: Tensor) -> None:
        """Have these numbers and no others."""
        self.packed.zero_()
        self.add(numbers)

    def flags(self) -> Tensor:
        """Whether each number is in the set, bool."""
        return torch.from_numpy(np.unpackbits(self.packed.numpy(), count=self.count)).bool()


class Turnover(NamedTuple):
    """What a refresh, or several, changed; in units."""

    active: int
    """Size of A."""
    entered: int
    """Units that are in A and were not."""
    promoted: int
    """Of these, those that were in B."""
    backward: int
    """Size of B."""
    entered_backward: int
    """Units that are in B and were not."""
    ever: int
    """Units that have ever been in A."""
    units: int
    """Units of the matrices."""


class HostMatrix:
    """The reservoir of a SparseLinear: parameters of all units, [units, size], and what became of
    them.

    Those of B are out of date between refreshes: their present values are the module's.
    """

    def __init__(self, module: SparseLinear, matrix: Tensor, folder: Path | None) -> None:
        """From the parameters of the whole matrix [out, in]; the first choice is still to come.

        Args:
            module: whose weights these are.
            matrix: parameters, before any power.
            folder: where to keep them in a file mapped into memory; none: in memory.
        """
        self.module, self.layout = module, module.layout
        units = self.layout.to_units(matrix.detach().cpu())
        self.reservoir = reservoir_like(units, folder)
        self.reservoir.copy_(units)
        self.ever = Bits(len(units))
        """Units that have been in A."""
        self.changed = Bits(len(units))
        """Units that have been in B since somebody cleared this."""

    def begin(self, scores: Tensor | None, noise: Tensor | None) -> None:
        """Make the first choice.

        Args:
            scores: of the units, for A; none: their magnitude.
            noise: as in Layout.choose.
        """
        module = self.module
        chosen = self.magnitudes() if scores is None else scores
        index = self.layout.choose(chosen, module.active, module.explored, noise)
        self._take(index)
        with torch.no_grad():
            module.values.copy_(self.reservoir[index.long()].flatten())

    def refresh(
        self, values: Tensor, moments: dict[str, Tensor], noise: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor], Turnover]:
        """Choose A and B anew.

        Args:
            values: present parameters of B, whole and in full precision.
            moments: the optimiser's, by name and of the same shape.
            noise: as in Layout.choose.

        Returns:
            Parameters and moments of the new B, and what has changed. A moment stays with its
            weight while that learns, and starts at zero.
        """
        module, size = self.module, self.layout.size
        before = module.index.cpu()
        self.reservoir[before.long()] = values.cpu().view(-1, size)
        after = self.layout.choose(self.magnitudes(), module.active, module.explored, noise)
        # Where exploration has stopped only A learns.
        learning = len(before) if module.exploring else module.active
        place = torch.full((self.layout.units,), -1, dtype=torch.int32)
        place[before[:learning].long()] = torch.arange(learning, dtype=torch.int32)
        source = place[after.long()]
        source[learning:] = -1
        moved = {name: _moved(moment.cpu(), source, size) for name, moment in moments.items()}
        turnover = self._turnover(before, after)
        self._take(after)
        return self.reservoir[after.long()].flatten(), moved, turnover

    def magnitudes(self) -> Tensor:
        """What the units are ranked by: the size of the effective weight, squared and summed in
        float64 over a block.
        """
        if self.layout.size == 1:
            # Of single weights, the power keeps the order.
            return self.reservoir[:, 0].abs()
        weights = power(self.reservoir, self.module.power.alpha)
        return weights.double().square().sum(1)

    def dense(self) -> Tensor:
        """Parameters of the whole matrix [out, in], those of B as the module has them."""
        units = self.reservoir.clone()
        module = self.module
        units[module.index.cpu().long()] = module.values.detach().cpu().view(-1, self.layout.size)
        return self.layout.to_matrix(units)

    def _take(self, index: Tensor) -> None:
        self.module.choose(index)
        self.ever.add(index[: self.module.active])
        self.changed.add(index)

    def _turnover(self, before: Tensor, after: Tensor) -> Turnover:
        active = self.module.active
        was = torch.zeros(self.layout.units, dtype=torch.int8)
        was[before.long()] = 1
        was[before[:active].long()] = 2
        entered = was[after[:active].long()]
        ever = self.ever.flags()
        ever[after[:active].long()] = True
        return Turnover(
            active,
            int((entered < 2).sum()),
            int((entered == 1).sum()),
            len(after),
            int((was[after.long()] == 0).sum()),
            int(ever.sum()),
            self.layout.units,
        )


def _moved(moment: Tensor, source: Tensor, size: int) -> Tensor:
    """Rows of a moment from their places `source`; 0 where that is negative."""
    rows = moment.view(-1, size)[source.clamp(min=0).long()]
    rows[source < 0] = 0
    return rows.flatten()


def reservoir_like(units: Tensor, folder: Path | None) -> Tensor:
    """An empty tensor of this shape in memory, or in a file of `folder` mapped into memory.

    The file has no name, so that it takes no room any more when the process has ended, however.
    """
    if folder is None:
        return torch.empty_like(units)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.empty(0, dtype=units.dtype).numpy().dtype
    with tempfile.TemporaryFile(dir=folder) as file:
        mapped = np.memmap(file, dtype=dtype, mode="w+", shape=tuple(units.shape))
    return torch.from_numpy(mapped)
