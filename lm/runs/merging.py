"""Weights with low-rank adapters, read as one matrix each (lm/runs/adapters.py says what they are).

Shapes: r rank, W [out, in], A [r, in], B [out, r].
"""

from pathlib import Path

from torch import Tensor

from data.common.tensors import TensorFile

BASE = ".base_layer"
"""In the name of a weight that has an adapter."""
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"
"""What follows the name of a map in the names of its A and B, as peft has them."""


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
