"""What attention projects slots to, in parts that lie side by side: memories and the segment.

Parts are read where they are as long as a kernel can; to join them is a copy. Shapes: B lanes, H
key-value heads of d dimensions, n slots of a part.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Slots(NamedTuple):
    """Neighbouring slots as attention sees them."""

    key_BHnd: Tensor
    """Keys without their positions."""
    value_BHnd: Tensor

    @property
    def number(self) -> int:
        """Number of slots n."""
        return self.key_BHnd.shape[2]

    def for_heads(self, heads: int) -> "Slots":
        """The same for so many heads of queries: key-value heads repeated, side by side."""
        stored = self.key_BHnd.shape[1]
        if stored == heads:
            return self
        shared = heads // stored
        return Slots(*(x.repeat_interleave(shared, dim=1) for x in self))

    def narrow(self, first: int, stop: int) -> "Slots":
        """Some of them, as views."""
        return Slots(self.key_BHnd[:, :, first:stop], self.value_BHnd[:, :, first:stop])


def joined(parts: Sequence[Slots]) -> Slots:
    """All parts as one."""
    if len(parts) == 1:
        return parts[0]
    keys, values = zip(*parts, strict=True)
    return Slots(torch.cat(keys, dim=2), torch.cat(values, dim=2))


def section(parts: Sequence[Slots], first: int, stop: int) -> Slots:
    """Slots `first` to `stop` of all, which are views if they lie in one part."""
    inside = []
    for part in parts:
        begin, end = max(first, 0), min(stop, part.number)
        if begin < end:
            inside.append(part.narrow(begin, end))
        first, stop = first - part.number, stop - part.number
    return joined(inside)
