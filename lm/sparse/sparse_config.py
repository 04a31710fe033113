"""Which matrices are kept sparse or reparameterised, and how."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from data.common.schema import Count, Positive, Size
from data.common.values import require_ranges

Kind = Literal["attention", "feedforward", "compression", "gates"]
Granularity = Literal["unstructured", "block", "2:4"]


def changed_fields(config: Any) -> list[str]:
    """Names of a config's fields that do not have their defaults."""
    return [f.name for f in fields(config) if getattr(config, f.name) != f.default]


def require_kinds(section: str, kinds: tuple[Kind, ...]) -> None:
    """ValueError where a section's kinds are none, or one stands twice."""
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"{section}.kinds must name some kinds once each, not {kinds}")


@dataclass(frozen=True)
class SparseConfig:
    """Top-KAST (Jayakumar et al., arXiv 2106.03517): matrices that are sparse all through training.

    Of each matrix the forward set A computes, and the larger backward set B learns: its weights
    outside A get the gradient of a weight that is zero. The rest waits in host memory.
    """

    density: float | None = None
    """Share D of each matrix's weights in A; none: matrices are dense."""
    exploration: float = 0.0
    """Share M of each matrix's weights that are in B and not in A."""
    kinds: tuple[Kind, ...] = ("attention", "feedforward")
    """Matrices that are sparse; embeddings, head, norms and biases never are."""
    by_kind: tuple[tuple[Kind, float, float], ...] = ()
    """Kinds with other shares, each as [kind, density, exploration]."""
    granularity: Granularity = "unstructured"
    """What enters and leaves a set: single weights, square blocks, or single weights of which each
    four in a row have two in A."""
    block: Size = 32
    """Side of the blocks of granularity block."""
    refresh: Size | None = 100
    """Steps between choices of A and B; none: the first choice stays."""
    penalty: Annotated[float, Field(ge=0)] = 1e-4
    """Coefficient of the exploration penalty, half the squared weights of A and, at 1/D, of the
    rest of B."""
    choice: Literal["magnitude", "random"] = "magnitude"
    """How A is chosen: the largest weights of each matrix, or once by chance (a static mask)."""
    explored: Literal["largest", "random"] = "largest"
    """How the rest of B is chosen: the largest weights outside A, or by chance at each refresh."""
    route: Literal["auto", "dense", "csr", "csr_dense", "blocks", "bsr", "semi"] = "auto"
    """How sparse matrices multiply: auto measures the routes that there are for each, when a run
    begins, and takes the fastest; checkpoints remember it."""
    stop_exploration: Count | None = None
    """Step from which on only A learns."""
    reservoir: Path | None = None
    """Folder of files that hold all weights instead of host memory, mapped into memory; they are
    scratch: checkpoints hold what a run needs."""

    def __post_init__(self) -> None:
        if self.density is None:
            if changed := changed_fields(self):
                raise ValueError(f"sparse.{changed[0]} has no effect without sparse.density")
            return
        require_ranges(self, "sparse")
        require_kinds("sparse", self.kinds)
        others = [kind for kind, *_ in self.by_kind]
        if len(set(others)) < len(others) or not set(others) <= set(self.kinds):
            raise ValueError(
                f"sparse.by_kind must name kinds of sparse.kinds once each, not {others}"
            )
        for kind in self.kinds:
            self._check_shares(kind)
        if self.block != type(self).block and self.granularity != "block":
            raise ValueError(
                f"sparse.block has no effect with sparse.granularity {self.granularity}"
            )
        self._check_exploration()

    def _check_shares(self, kind: Kind) -> None:
        density, exploration = self.shares(kind)
        if not (0 < density <= 1 and exploration >= 0 and density + exploration <= 1 + 1e-9):
            own = " (sparse.by_kind)" if any(name == kind for name, *_ in self.by_kind) else ""
            raise ValueError(
                f"sparse.density must be above 0, sparse.exploration at least 0 and both together "
                f"at most 1, not {density} and {exploration} for {kind}{own}"
            )
        if self.granularity == "2:4" and (density, exploration) not in TWO_OF_FOUR:
            raise ValueError(
                "sparse.granularity 2:4 has sparse.density 0.5 and sparse.exploration 0, 0.25 or "
                f"0.5, not {density} and {exploration}"
            )

    def _check_exploration(self) -> None:
        explores = any(self.shares(kind)[1] > 0 for kind in self.kinds)
        if self.choice == "random" and self.refresh is not None:
            raise ValueError("sparse.choice random is made once; set sparse.refresh to null")
        if self.refresh is None and explores:
            raise ValueError(
                "sparse.exploration has no effect without sparse.refresh, because nothing that is "
                "explored would enter the forward set; set it to 0"
            )
        for name in ("explored", "stop_exploration"):
            if getattr(self, name) != getattr(type(self), name) and not explores:
                raise ValueError(f"sparse.{name} has no effect without sparse.exploration")

    def shares(self, kind: Kind) -> tuple[float, float]:
        """Density D and exploration M of a kind of matrices."""
        assert self.density is not None
        own = {name: (density, more) for name, density, more in self.by_kind}
        return own.get(kind, (self.density, self.exploration))


TWO_OF_FOUR = ((0.5, 0.0), (0.5, 0.25), (0.5, 0.5))


@dataclass(frozen=True)
class PowerConfig:
    """Powerpropagation (Schwarz et al., arXiv 2110.00296): weights are sign(p) |p| ** alpha of the
    parameters p, so that large ones move fast and small ones slowly.
    """

    alpha: Annotated[float, Field(ge=1)] = 1.0
    """The power; 1 leaves weights as they are."""
    kinds: tuple[Kind, ...] = ("attention", "feedforward")
    """Matrices that are reparameterised."""
    factor: Literal["after", "plain"] = "after"
    """Where the chain rule's alpha |p| ** (alpha - 1) comes in: after the optimiser has normalised
    the gradient of the weight, which would cancel most of it, or in the gradient itself."""
    decay: Literal["weight", "parameter"] = "weight"
    """What optim.weight_decay shrinks: the weight, or the parameter p."""
    lr: Positive | None = None
    """Peak learning rate of these matrices; none: optim.lr. Their slopes make the steps of small
    weights smaller, so they bear a larger rate than the rest of the model."""

    def __post_init__(self) -> None:
        require_ranges(self, "power")
        if self.alpha == 1 and (changed := changed_fields(self)):
            raise ValueError(f"power.{changed[0]} has no effect with power.alpha 1")
        require_kinds("power", self.kinds)


PLAIN = PowerConfig()
"""No powers."""


Scope = Literal["matrix", "model"]


@dataclass(frozen=True)
class PackingConfig:
    """How many weights a corpus may claim."""

    accepted: float = 0.99
    """Share gamma of the quality that a mask must keep: bits per byte may rise to 1 / gamma."""
    densities: tuple[float, ...] = (0.8, 0.6, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
    """Shares of each matrix that are tried, falling."""
    kinds: tuple[Kind, ...] = ("attention", "feedforward")
    """Matrices that corpora share; of all other parameters each has its own."""

    def __post_init__(self) -> None:
        require_kinds("packing", self.kinds)
        if not 0 < self.accepted <= 1:
            raise ValueError(f"packing.accepted must be above 0, at most 1, not {self.accepted}")
        falling = sorted({d for d in self.densities if 0 < d < 1}, reverse=True)
        if list(self.densities) != falling:
            raise ValueError("packing.densities must fall, and lie between 0 and 1")
