"""Low-rank adapters of linear maps (LoRA, Hu et al., arXiv 2106.09685), as checkpoints hold them.

y = W x + b becomes y = (W + s B A) x + b with A [r, in], B [out, r] and s = alpha / r. W and b stay
what they were; A and B are learnt. Who reads a checkpoint gets W + s B A by the name of W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from data.common.schema import Size
from data.common.tensors import TensorFile
from data.common.values import require_ranges

BASE = ".base_layer"
"""In the name of a weight that has an adapter."""
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""What follows the name of a map in the names of its A and B, as peft has them."""
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


def merged(weight: Tensor, down: Tensor, up: Tensor, scale: float) -> Tensor:
    """W + s B A."""
    return weight + scale * (up @ down)


class MergedFile(TensorFile):
    """Weights of a checkpoint with its adapters merged, under the names of a model without."""

    def __init__(self, path: Path, mend: str, scale: float) -> None:
        """`scale`: s of all adapters; the rest as of TensorFile."""
        super().__init__(path, mend)
        self.scale = scale
        self.stored = {
            name.replace(f"{BASE}.", "."): name
            for name in self.names
            if not name.endswith((DOWN, UP))
        }
        self.names = list(self.stored)

    def __getitem__(self, name: str) -> Tensor:
        """See TensorFile."""
        stored = self.stored.get(name, name)
        tensor = super().__getitem__(stored)
        place, found, last = stored.rpartition(BASE)
        if not found or last != ".weight":
            return tensor
        down, up = (super(MergedFile, self).__getitem__(place + part) for part in (DOWN, UP))
        return merged(tensor, down, up, self.scale)

    def shape(self, name: str) -> tuple[int, ...]:
        """See TensorFile."""
        return super().shape(self.stored[name])

    def halved(self, name: str) -> bool:
        """See TensorFile."""
        return super().halved(self.stored[name])


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
