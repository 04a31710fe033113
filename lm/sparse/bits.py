"""A set of numbers as one bit for each."""

import numpy as np
import torch
from torch import Tensor


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

    def clear(self) -> None:
        """Make the set empty."""
        self.packed.zero_()

    def flags(self) -> Tensor:
        """Whether each number is in the set, bool."""
        return torch.from_numpy(np.unpackbits(self.packed.numpy(), count=self.count)).bool()
