"""One segment of every lane as arrays.

Shapes: B lanes of this rank, T tokens a segment.
"""

from dataclasses import dataclass

import numpy as np

from data.shards import Split


@dataclass(frozen=True)
class Batch:
    """One segment of every lane.

    inputs_BT, targets_BT: ids, int64; scored_BT: False for padding and warm-up; reset_B: the lane's
    memory must be emptied before this segment; offset_B: index in the split of the lane's first
    target, int64.
    """

    inputs_BT: np.ndarray
    targets_BT: np.ndarray
    scored_BT: np.ndarray
    reset_B: np.ndarray
    offset_B: np.ndarray


class BatchBuilder:
    """Fills the rows of one batch with runs of consecutive tokens; the rest is padding."""

    def __init__(self, split: Split, rows: int, length: int) -> None:
        # A plain array over the same memory map: slicing numpy's memmap class is far slower.
        self.tokens, self.start = np.asarray(split.tokens), split.vocabulary.start
        self.inputs_BT = np.empty((rows, length), dtype=np.int64)
        self.targets_BT = np.empty((rows, length), dtype=np.int64)
        self.scored_BT = np.ones((rows, length), dtype=bool)
        self.reset_B = np.zeros(rows, dtype=bool)
        self.offset_B = np.zeros(rows, dtype=np.int64)
        self.filled = [0] * rows

    def add(self, row: int, position: int, count: int, begins: bool) -> None:
        """Append `count` targets from `position`; `begins`: the first has `start` as its input."""
        at, end = self.filled[row], self.filled[row] + count
        if at == 0:
            self.offset_B[row] = position
        self.targets_BT[row, at:end] = self.tokens[position : position + count]
        if begins and count:
            self.inputs_BT[row, at] = self.start
            self.inputs_BT[row, at + 1 : end] = self.tokens[position : position + count - 1]
        else:
            self.inputs_BT[row, at:end] = self.tokens[position - 1 : position + count - 1]
        self.filled[row] = end

    def fill(self, rows: np.ndarray, positions: np.ndarray) -> None:
        """Fill empty rows with whole segments from `positions`, all above 0. A faster `add`."""
        length = self.inputs_BT.shape[1]
        if not len(rows):
            return
        # sliding_window_view, without the time that its generality takes.
        shape, (stride,) = (len(self.tokens) - length, length + 1), self.tokens.strides
        windows = np.lib.stride_tricks.as_strided(self.tokens, shape, (stride, stride))
        ids_RS = windows[positions - 1]
        chosen = slice(None) if len(rows) == len(self.filled) else rows
        self.inputs_BT[chosen] = ids_RS[:, :-1]
        self.targets_BT[chosen] = ids_RS[:, 1:]
        self.offset_B[chosen] = positions
        for row in rows.tolist():
            self.filled[row] = length

    def batch(self) -> Batch:
        """The batch, its unfilled places padded with `start` and not scored."""
        for row, end in enumerate(self.filled):
            if end < self.inputs_BT.shape[1]:
                self.inputs_BT[row, end:] = self.start
                self.targets_BT[row, end:] = self.start
                self.scored_BT[row, end:] = False
        return Batch(self.inputs_BT, self.targets_BT, self.scored_BT, self.reset_B, self.offset_B)
