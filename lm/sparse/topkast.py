"""Top-KAST: choosing, every few steps, which weights of a model compute and which learn.

Jayakumar et al., arXiv 2106.03517. The choice of A and B is made for each matrix by itself, and is
a function of its weights alone (or of seed and step, where it is random), so that all ranks make
the same one.
"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from lm.model.components import Linear
from lm.sparse.layout import Layout
from lm.sparse.matrix import HostMatrix, Turnover
from lm.sparse.powerprop import PowerLinear, root
from lm.sparse.sparse_config import PLAIN, Kind, PowerConfig, SparseConfig
from lm.sparse.sparse_linear import SparseLinear

KINDS: dict[str, Kind] = {
    "attention": "attention",
    "feedforward": "feedforward",
    "compression": "compression",
    "attention_gate": "gates",
    "feedforward_gate": "gates",
}
"""Kind of the matrices in each part of a layer; others stay dense."""


class Store(Protocol):
    """Where parameters and the optimiser's moments are; every rank calls it alike."""

    def read(self, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """A parameter by name, whole and in full precision, and its moments by their names."""

    def write(self, name: str, values: Tensor, moments: Mapping[str, Tensor]) -> None:
        """Put back what `read` gave, with other values."""


class TopKast:
    """The sparse matrices of a model, by the name of their parameter."""

    def __init__(self, config: SparseConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.matrices: dict[str, HostMatrix] = {}

    def begin(self) -> None:
        """Choose A and B for the first step."""
        random = self.config.choice == "random"
        for number, matrix in enumerate(self.matrices.values()):
            scores = self._noise(number, 0, matrix, what=0) if random else None
            matrix.begin(scores, self._exploration(number, 0, matrix))
        self.at(0)

    def at(self, step: int) -> None:
        """Be as training is after `step` steps: exploring, or not any more."""
        stop = self.config.stop_exploration
        for matrix in self.matrices.values():
            matrix.module.exploring = stop is None or step < stop

    def due(self, step: int) -> bool:
        """Whether sets are chosen after `step` steps."""
        every = self.config.refresh
        if every is None or not self.matrices or step == 0:
            return False
        return step % every == 0 or step == self.config.stop_exploration

    def refresh(self, step: int, store: Store) -> dict[str, float]:
        """Choose A and B anew after `step` steps.

        Returns:
            Of A, the share that has changed and, of that, the share that was in B before; the share
            of B that has changed; the share of all weights that have ever been in A.
        """
        self.at(step)
        turnovers = []
        for number, (name, matrix) in enumerate(self.matrices.items()):
            noise = self._exploration(number, step, matrix)
            values, moments, turnover = matrix.refresh(*store.read(name), noise)
            store.write(name, values, moments)
            weighed = (count * matrix.layout.size for count in turnover)
            turnovers.append(Turnover(*weighed))
        total = Turnover(*map(sum, zip(*turnovers, strict=True)))
        return {
            "sparse_changed": total.entered / total.active,
            "sparse_promoted": total.promoted / max(total.entered, 1),
            "sparse_backward_changed": total.entered_backward / total.backward,
            "sparse_ever_active": total.ever / total.units,
        }

    def _exploration(self, number: int, step: int, matrix: HostMatrix) -> Tensor | None:
        random = self.config.explored == "random"
        return self._noise(number, step, matrix, what=1) if random else None

    def _noise(self, number: int, step: int, matrix: HostMatrix, what: int) -> Tensor:
        """Random scores of a matrix's units, the same on every rank."""
        words = np.random.SeedSequence([self.seed, step, number, what]).generate_state(2)
        generator = torch.Generator().manual_seed(int(words[0]) << 31 ^ int(words[1]))
        return torch.rand(matrix.layout.units, generator=generator, dtype=torch.float64)


def sparsify(model: nn.Module, sparse: SparseConfig, power: PowerConfig, seed: int) -> TopKast:
    """Give the matrices of a new, dense model the form that the configs ask for, in place.

    Args:
        model: its linear maps are replaced; on the host.
        sparse: which become sparse.
        power: which are powers of their parameters.
        seed: of random choices.

    Returns:
        What holds the sparse ones' weights and chooses among them.

    Raises:
        ValueError: a kind that the model has no matrix of, a matrix that blocks do not fit, or one
            that is zero and to be a power.
    """
    topkast = TopKast(sparse, seed)
    found = set()
    sparse_kinds = () if sparse.density is None else sparse.kinds
    power_kinds = () if power.alpha == 1 else power.kinds
    for name, module in list(model.named_modules()):
        kind = kind_of(name) if isinstance(module, Linear) else None
        if kind is None:
            continue
        found.add(kind)
        assert isinstance(module, Linear)
        parent, _, own = name.rpartition(".")
        powered = power if kind in power_kinds else PLAIN
        if powered.alpha > 1 and not module.weight.any():
            raise ValueError(f"{name} starts at zero, where Powerpropagation never moves a weight")
        if kind in sparse_kinds:
            if not module.weight.any():
                raise ValueError(
                    f"{name} starts at zero, where no weight is larger than another: take "
                    f"{kind} out of sparse.kinds, or set model.compression_initial to random"
                )
            host = _host_matrix(module, sparse, kind, powered)
            topkast.matrices[f"{name}.values"] = host
            setattr(model.get_submodule(parent), own, host.module)
        elif kind in power_kinds:
            setattr(model.get_submodule(parent), own, PowerLinear(module, powered))
    for section, kinds in (("sparse", sparse_kinds), ("power", power_kinds)):
        for kind in kinds:
            if kind not in found:
                raise ValueError(f"{section}.kinds names {kind}, which this model has no matrix of")
    topkast.begin()
    return topkast


def kind_of(name: str) -> Kind | None:
    """Kind of the matrix of a module `blocks.N.part...`; None for one that stays dense."""
    parts = name.split(".")
    return KINDS.get(parts[2]) if len(parts) > 3 and parts[0] == "blocks" else None


def _host_matrix(dense: Linear, config: SparseConfig, kind: Kind, power: PowerConfig) -> HostMatrix:
    density, exploration = config.shares(kind)
    block = config.block if config.granularity == "block" else 1
    layout = Layout(dense.out_features, dense.in_features, config.granularity, block)
    penalty = (config.penalty, config.penalty / density)
    module = SparseLinear(
        layout, layout.counts(density, exploration), dense.bias, penalty, power
    ).to(dense.weight.dtype)
    return HostMatrix(module, root(dense.weight.detach(), power.alpha), config.reservoir)
