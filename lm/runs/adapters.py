"""Low-rank adapters of linear maps (LoRA, Hu et al., arXiv 2106.09685): which maps get one.

y = W x + b becomes y = (W + s B A) x + b with A [r, in], B [out, r] and s = alpha / r. W and b stay
what they were; A and B are learnt. Who reads a checkpoint gets W + s B A by the name of W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from data.common.schema import Size
from data.common.values import require_ranges

TARGETS = {
    "queries": ("query_key_value",),
    "keys": ("query_key_value",),
    "values": ("query_key_value",),
    "output": ("output",),
    "feedforward": ("inner", "outer"),
}
"""Maps of a layer by what people call them; one map makes queries, keys and values."""
ALL = "all-linear"


@dataclass(frozen=True)
class LoraConfig:
    """Adapters; only with training.learn lora."""

    rank: Size = 8
    """Rank r of what is added to a matrix."""
    alpha: Annotated[float, Field(gt=0)] = 16.0
    """What is added is scaled by alpha / rank."""
    targets: tuple[str, ...] = (ALL,)
    """Maps that get one: queries, keys, values, output (of attention), feedforward; all-linear:
    every linear map of the layers but those that compress."""

    def __post_init__(self) -> None:
        require_ranges(self, "training.lora")
        for name in self.targets:
            if name not in (*TARGETS, ALL):
                raise ValueError(
                    f"training.lora.targets knows no {ascii(name)[1:-1]}; there are: "
                    f"{', '.join((*TARGETS, ALL))}"
                )
        wrong = len({*self.targets}) < len(self.targets) or (ALL in self.targets)
        if not self.targets or (wrong and self.targets != (ALL,)):
            raise ValueError(
                "training.lora.targets must name some maps once each, or all-linear alone, not "
                f"{list(self.targets)}"
            )

    @property
    def scale(self) -> float:
        """What B A is multiplied by, s."""
        return self.alpha / self.rank


def rows_left(targets: Sequence[str], sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Rows of the map to queries, keys and values that no target names, as [first, stop).

    Args:
        targets: see LoraConfig.
        sizes: rows of queries, of keys, of values.
    """
    frozen, first = [], 0
    for name, size in zip(("queries", "keys", "values"), sizes, strict=True):
        if name not in targets and ALL not in targets:
            frozen.append((first, first + size))
        first += size
    return frozen
