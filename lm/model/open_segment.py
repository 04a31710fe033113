"""What is kept of a segment that is not complete yet, and the tokens that come to it.

Shapes as in attention/base.py; B lanes of text, t new tokens, n tokens that are there.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lm.model.attention.base import Places, Slots


@dataclass
class OpenLayer:
    """What one layer keeps of the open segment of every lane."""

    memory: Slots
    """Of [pinned ; compressed ; memory], with placed keys, for the B' lanes of memory."""
    segment: Slots
    """Room for all tokens of the open segment, with placed keys."""
    inputs_BTD: Tensor
    """Inputs of the tokens read so far, which will enter memory."""
    received_BS: Tensor | None
    """Attention that each key has received from them, if compression asks for it."""
    levels_BP: Tensor | None
    """What the filters hold after them, if there are any."""

    def rooms(self) -> dict[str, Tensor]:
        """What belongs to the open segment, by name, lane first."""
        key, value = self.segment
        rooms = {"key": key, "value": value, "inputs": self.inputs_BTD}
        others = {"received": self.received_BS, "filters": self.levels_BP}
        return rooms | {name: room for name, room in others.items() if room is not None}

    def of_lanes(self, memory: Slots, rows: Tensor | slice | list[int]) -> "OpenLayer":
        """The open segment of some lanes, after `memory`."""
        some = {name: room[rows] for name, room in self.rooms().items()}
        segment = Slots(some["key"], some["value"])
        others = some.get("received"), some.get("filters")
        return OpenLayer(memory, segment, some["inputs"], *others)


class Part(NamedTuple):
    """Tokens that extend open segments: t columns, of which some lanes may have fewer."""

    tokens_Bt: Tensor
    places: Places
    length: int
    """Tokens L of the open segment that some of them may see."""
    rows: tuple[Tensor, Tensor, Tensor] | None
    """Lane, column and place in the open segment of each token that is there, [n] int64 each; None
    where every lane reads all columns, from one place on."""

    def scatter(self, values: Tensor, room: Tensor, dimension: int) -> None:
        """Put what belongs to the tokens into the open segments, where `rows` says.

        Args:
            values: of the tokens, lane first.
            room: that of the open segments.
            dimension: along which tokens lie.
        """
        assert self.rows is not None
        lanes, columns, places = self.rows
        room.transpose(1, dimension)[lanes, places] = values.transpose(1, dimension)[lanes, columns]

    def newest(self, values_Btx: Tensor, before_Bx: Tensor) -> Tensor:
        """Of values of the tokens that of the last one each lane reads; those before if none.

        Args:
            values_Btx: of the tokens.
            before_Bx: of the token before them.
        """
        if self.rows is None:
            return values_Btx[:, -1]
        lanes, columns, _ = self.rows
        # Tokens of a lane follow each other.
        last = torch.cat([lanes[1:] != lanes[:-1], lanes.new_ones(1, dtype=torch.bool)])
        return before_Bx.index_copy(0, lanes[last], values_Btx[lanes[last], columns[last]])

    def place(self, hidden_BtD: Tensor, done: list[int], output_BTD: Tensor) -> None:
        """Put what was made of the tokens among that of all, of which each lane has `done`."""
        if self.rows is None:
            output_BTD[:, done[0] : done[0] + hidden_BtD.shape[1]] = hidden_BtD
        else:
            lanes, columns, _ = self.rows
            starts = torch.tensor(done, device=hidden_BtD.device)
            output_BTD[lanes, starts[lanes] + columns] = hidden_BtD[lanes, columns]
