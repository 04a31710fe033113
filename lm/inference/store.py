"""What has been read, searched by content: keys and values of each lane's last tokens, in a ring.

Exact search by matrix products, on any device. Nothing is shared between lanes: the text of one may
be the future of another.

Shapes: B lanes, R slots of the ring, D width of keys, t new entries, T queries, K neighbours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LAST = torch.iinfo(torch.int64).max
"""Sorts behind every entry that may be seen."""


@dataclass(frozen=True)
class Found:
    """The nearest entries of each query, nearest first and of equals the newest first."""

    slots_BTK: Tensor
    """int64, where they stand in the ring."""
    squares_BTK: Tensor
    """Squared distances."""
    products_BTK: Tensor
    """Products of query and key."""
    live_BTK: Tensor
    """bool, false where there are fewer entries than were asked for."""


class Store:
    """Rings of keys and values. The entries of a lane are numbered from its beginning; entry n lies
    in slot n mod R. A query that may see the first n entries sees the last `capacity` of them, so
    what it finds does not depend on how many tokens were added at once, as long as no more than
    R - capacity were.
    """

    def __init__(self, tensors: Mapping[str, Tensor], capacity: int) -> None:
        """A store of what `tensors` gave.

        Raises:
            ValueError: a part is missing, or has another shape than these.
        """
        try:
            self.keys_BRD, self.values_BR = tensors["keys"], tensors["values"]
            self.norms_BR, self.written_B = tensors["norms"], tensors["written"]
        except KeyError as error:
            raise ValueError(f"the store of what was read lacks {error.args[0]}") from None
        lanes, slots, _ = self.keys_BRD.shape
        shapes = (self.values_BR.shape, self.norms_BR.shape, self.written_B.shape)
        if shapes != ((lanes, slots), (lanes, slots), (lanes,)) or slots <= capacity:
            raise ValueError("the store of what was read is of another capacity or damaged")
        self.capacity = capacity

    @staticmethod
    def empty(lanes: int, capacity: int, slack: int, like_D: Tensor) -> "Store":
        """A store in which nothing lies.

        Args:
            lanes: of text.
            capacity: the newest entries that a query sees.
            slack: most entries that are added at once.
            like_D: a key, for its width, type and device.
        """
        slots = capacity + slack
        values_BR = torch.zeros(lanes, slots, dtype=torch.int64, device=like_D.device)
        tensors = {
            "keys": like_D.new_zeros(lanes, slots, len(like_D)),
            "norms": like_D.new_zeros(lanes, slots),
            "values": values_BR,
            "written": values_BR.new_zeros(lanes),
        }
        return Store(tensors, capacity)

    @property
    def lanes(self) -> int:
        """Number of lanes B."""
        return len(self.written_B)

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, lane first."""
        return {
            "keys": self.keys_BRD,
            "norms": self.norms_BR,
            "values": self.values_BR,
            "written": self.written_B,
        }

    def reset(self, reset_B: Tensor) -> "Store":
        """The same with nothing in the lanes where `reset_B` is true."""
        return Store(self.tensors() | {"written": self.written_B * ~reset_B}, self.capacity)

    def select(self, lanes: Sequence[int]) -> "Store":
        """Some lanes, in any order and number; each goes on for itself."""
        rows = torch.tensor(list(lanes), device=self.written_B.device)
        return Store({name: each[rows] for name, each in self.tensors().items()}, self.capacity)

    def add(self, keys_BtD: Tensor, values_Bt: Tensor, live_Bt: Tensor) -> Tensor:
        """Write entries, oldest first, where `live_Bt` (bool) is true; the store itself changes.

        Returns:
            How many entries of its lane had been written after each, [B, t].
        """
        slots = self.keys_BRD.shape[1]
        assert keys_BtD.shape[1] <= slots - self.capacity
        count_Bt = self.written_B[:, None] + live_Bt.cumsum(dim=1)
        lanes_n, columns_n = live_Bt.nonzero(as_tuple=True)
        slots_n = (count_Bt[lanes_n, columns_n] - 1) % slots
        keys_nD = keys_BtD[lanes_n, columns_n].to(self.keys_BRD.dtype)
        self.keys_BRD[lanes_n, slots_n] = keys_nD
        self.norms_BR[lanes_n, slots_n] = keys_nD.square().sum(dim=-1)
        self.values_BR[lanes_n, slots_n] = values_Bt[lanes_n, columns_n]
        self.written_B = count_Bt[:, -1].clone()
        return count_Bt

    def numbers(self) -> Tensor:
        """The number of the entry in each slot, [B, R], below 0 where there is none."""
        slots = self.keys_BRD.shape[1]
        newest_B1 = self.written_B[:, None] - 1
        return newest_B1 - (newest_B1 - torch.arange(slots, device=newest_B1.device)) % slots

    def visible(self, count_BT: Tensor) -> Tensor:
        """Which slots a query sees that may see the first `count` entries, [B, T, R] bool."""
        number_B1R, count_BT1 = self.numbers()[:, None], count_BT[..., None]
        first = (count_BT1 - self.capacity).clamp(min=0)
        return (number_B1R >= first) & (number_B1R < count_BT1)

    def products(self, queries_BTD: Tensor) -> Tensor:
        """Products of queries with every key, [B, T, R]."""
        return queries_BTD.to(self.keys_BRD.dtype) @ self.keys_BRD.transpose(1, 2)

    def nearest(self, queries_BTD: Tensor, count_BT: Tensor, neighbours: int) -> Found:
        """The nearest entries by squared distance.

        Args:
            queries_BTD: of the keys' width.
            count_BT: how many entries of its lane each may see; the last `capacity` of them count.
            neighbours: K; no more are found than there are slots.
        """
        products_BTR = self.products(queries_BTD)
        norms_BT1 = queries_BTD.to(products_BTR.dtype).square().sum(dim=-1, keepdim=True)
        squares_BTR = (norms_BT1 + self.norms_BR[:, None] - 2 * products_BTR).clamp(min=0) + 0.0
        # The bits of floating-point numbers that are not negative sort as the numbers do, so one
        # whole number holds distance and, below it, age: ties fall alike on every device.
        age_BR = self.written_B[:, None] - self.numbers()
        bits_BTR = squares_BTR.float().view(torch.int32).long()
        order_BTR = (bits_BTR << 32) + age_BR[:, None]
        order_BTR = order_BTR.masked_fill(~self.visible(count_BT), LAST)
        count = min(neighbours, order_BTR.shape[-1])
        order_BTK, slots_BTK = order_BTR.topk(count, dim=-1, largest=False, sorted=True)
        return Found(
            slots_BTK,
            squares_BTR.gather(-1, slots_BTK),
            products_BTR.gather(-1, slots_BTK),
            order_BTK < LAST,
        )
