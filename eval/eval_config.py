"""How the programs of this folder read a split, and what each does with it: without torch."""

from dataclasses import dataclass, field
from itertools import product
from typing import Annotated, Literal

from pydantic import Field

from data.common.schema import Count, Positive, Size
from eval.results import Share
from lm.inference.inference_config import Lengths, Local, Placement, ScoringConfig
from lm.sparse.sparse_config import Kind, Scope

ABLATIONS = ("intact", "absent", "zeroed", "shuffled", "exchanged")
"""What may be done to compressed memory (eval.ablation)."""
NAMES = ("segment", "memory", "compressed", "sinks")
"""Lengths that a sweep may try."""


@dataclass(frozen=True)
class ScoreConfig(ScoringConfig, Lengths, Placement):
    """How a split is read when it is scored; lengths default to those of training."""


@dataclass(frozen=True)
class SweepConfig:
    """Lengths to be tried on the validation split, in all combinations; the best is then scored."""

    segment: tuple[Size, ...] = ()
    """Tokens read at once."""
    memory: tuple[Count, ...] = ()
    """Slots of memory in each layer."""
    compressed: tuple[Count, ...] = ()
    """Slots of compressed memory in each layer."""
    sinks: tuple[Count, ...] = ()
    """First tokens of a text that stay visible for ever."""

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in NAMES)

    def points(self, fixed: Lengths) -> list[Lengths]:
        """Every combination; what no list names is as in `fixed`.

        Raises:
            ValueError: a length is given both ways.
        """
        for name in NAMES:
            if getattr(self, name) and getattr(fixed, name) is not None:
                raise ValueError(f"give either --{name} or --sweep.{name}")
        choices = [getattr(self, name) or (getattr(fixed, name),) for name in NAMES]
        return [Lengths(*lengths) for lengths in product(*choices)]


@dataclass(frozen=True)
class ProgramConfig(ScoreConfig):
    """How a split is read, at one choice of lengths or the best of several."""

    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass(frozen=True)
class BreakdownConfig(ScoreConfig):
    """How the split is read, and how it is cut."""

    edges: tuple[Size, ...] = (10_000, 1_000, 100)
    """Occurrences in the training text at which a bucket of rarer words begins, falling."""
    ablations: tuple[str, ...] = ABLATIONS
    """What is done to compressed memory, each in a pass of its own: intact, absent, zeroed,
    shuffled, exchanged."""
    worth: bool = True
    """Measure what memory tells of each token, by a second reading without it; also writes a page
    of the passages where that is most."""
    local: Local | None = None
    """What the second reading sees: the segment alone, or memory without compressed memory; none:
    what it saw in training, or memory where there is compressed memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if sorted(set(self.edges), reverse=True) != list(self.edges) or not self.edges:
            raise ValueError(f"edges must fall from bucket to bucket, not {list(self.edges)}")
        if self.local is not None and not self.worth:
            raise ValueError("local has no effect with worth false; leave it out")
        if unknown := set(self.ablations) - set(ABLATIONS):
            raise ValueError(f"ablations are some of {', '.join(ABLATIONS)}, not {min(unknown)}")


@dataclass(frozen=True)
class DynamicConfig(ScoreConfig):
    """How the text is read, and how weights move on the way."""

    lanes: Size = 1
    """Parts of the split that are read side by side; weights learn from all of them at once."""
    lrs: tuple[Annotated[float, Field(ge=0)], ...] = (1e-5, 1e-4)
    """Learning rates, each in a pass of its own that begins with the trained weights."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """What turns gradients into steps."""
    every: Size = 1
    """Segments of each lane whose gradients are gathered for one step."""
    decay: Share = 0.0
    """Share of the way back to the trained weights that each step goes."""
    clip: Positive = 0.1
    """Largest global norm of a step's gradient."""
    limit: Size | None = None
    """Read only this many segments of each lane; the plain score is then of these as well."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.lrs:
            raise ValueError("lrs must be some rates of at least 0")
        if self.precision != "float32":
            raise ValueError("weights that learn need precision float32; leave --precision out")


@dataclass(frozen=True)
class PruneConfig(ScoreConfig):
    """What is pruned, and how a split is read when it is scored."""

    sparsities: tuple[Share, ...] = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
    """Shares of the weights that are zero."""
    kinds: tuple[Kind, ...] = ("attention", "feedforward")
    """Matrices that are pruned."""
    scope: Scope = "matrix"
    """Whether the smallest weights of each matrix go, or the smallest of all together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sparsities:
            raise ValueError("sparsities must be some shares between 0 and 1")
        if not self.kinds:
            raise ValueError("kinds must name some matrices, such as '[attention, feedforward]'")
