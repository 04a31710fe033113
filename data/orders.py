"""What each lane reads next, as a pure function of a few integers: `stream` and `documents`."""

import hashlib
import heapq
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from data.shards import Split

State = dict[str, int | list[int]]


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


def draw(split: Split, lanes: int, seed: int, epoch: int) -> int:
    """A 64-bit number that depends on shards, split, lanes, seed and epoch, and on nothing else."""
    text = f"{split.shards_hash} {split.name} {lanes} {seed} {epoch}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class StreamOrder:
    """The split as a ring, cut into equal contiguous lanes, as Transformer-XL does.

    The ring is cut at position 0 in epoch 0 and at a drawn position in every later one, so that
    segments fall differently. Memory is reset at an epoch's start: it belonged to another place.
    """

    def __init__(self, split: Split, lanes: int, segment: int, seed: int, mine: range) -> None:
        self.split, self.lanes, self.segment, self.seed = split, lanes, segment, seed
        self.mine = mine
        self.total = len(split.tokens)
        if self.total < lanes:
            raise ValueError(
                f"the split {split.name!r} has {self.total:,} tokens, too few for {lanes} lanes"
            )
        longest_lane = -(-self.total // lanes)
        self.segments_per_epoch = -(-longest_lane // segment)
        self.step = 0

    @property
    def epoch(self) -> int:
        """Number of whole epochs read."""
        return self.step // self.segments_per_epoch

    def fill(self, builder: BatchBuilder) -> None:
        """Add the next segment of each lane."""
        epoch, index = divmod(self.step, self.segments_per_epoch)
        cut = draw(self.split, self.lanes, self.seed, epoch) % self.total if epoch else 0
        builder.reset_B[:] = index == 0
        lane_B = np.arange(self.mine.start, self.mine.stop)
        begin_B = lane_B * self.total // self.lanes + index * self.segment
        end_B = (lane_B + 1) * self.total // self.lanes
        count_B = np.clip(end_B - begin_B, 0, self.segment)
        position_B = (cut + begin_B) % self.total
        whole_B = (count_B == self.segment) & (position_B + self.segment <= self.total)
        whole_B &= position_B > 0
        builder.fill(np.flatnonzero(whole_B), position_B[whole_B])
        for row in np.flatnonzero(~whole_B).tolist():
            position, count = int(position_B[row]), int(count_B[row])
            before_wrap = min(count, self.total - position)
            builder.add(row, position, before_wrap, position == 0)
            if before_wrap < count:
                builder.add(row, 0, count - before_wrap, begins=True)
        self.step += 1

    def state(self) -> State:
        """The step, which is all."""
        return {"step": self.step}

    def load_state(self, state: State) -> None:
        """Continue where `state` was taken."""
        self.step = int(state["step"])  # type: ignore[arg-type]

    def seek(self, step: int) -> None:
        """Continue as after `step` calls of `fill`."""
        self.step = step


class DocumentOrder:
    """Whole documents one after another in each lane, shuffled anew each epoch (PG-19's setting).

    An epoch's documents are dealt in shuffled order, each to the lane that has least to read. A
    lane that is through goes on with its next epoch at once, so lanes never wait for one another.
    reset: a document's tail is padded and the next one begins with empty memory; otherwise
    documents follow one another without padding and memory is never reset.
    """

    def __init__(
        self, split: Split, lanes: int, segment: int, seed: int, mine: range, reset: bool
    ) -> None:
        self.split, self.lanes, self.segment, self.seed = split, lanes, segment, seed
        self.reset = reset
        documents = split.documents
        self.ids = np.flatnonzero(documents["tokens"])
        self.offset, self.length = documents["offset"][self.ids], documents["tokens"][self.ids]
        if len(self.ids) < lanes:
            raise ValueError(
                f"the split {split.name!r} has {len(self.ids)} documents, too few for {lanes} lanes"
                " in documents order: use fewer lanes or order stream"
            )
        # What a document costs its lane: segments when its tail is padded, else tokens.
        self.cost = -(-self.length // segment) if reset else self.length
        self.segments_per_epoch = -(-int(self.cost.sum()) // (lanes if reset else lanes * segment))
        self.deal = lru_cache(maxsize=4)(self._deal)
        self.mine = mine
        # Of each lane: epoch, place in its order and offset in the document, which lies at begin_B
        # and has size_B tokens.
        self.cursors = np.zeros((len(mine), 3), dtype=np.int64)
        self.begin_B = np.zeros(len(mine), dtype=np.int64)
        self.size_B = np.zeros(len(mine), dtype=np.int64)
        self._open(range(len(mine)))

    def _deal(self, epoch: int) -> list[np.ndarray]:
        """For each lane the documents of an epoch, in reading order."""
        random = np.random.PCG64(draw(self.split, self.lanes, self.seed, epoch))
        shuffled = np.argsort(random.random_raw(len(self.ids)), kind="stable")
        dealt: list[list[int]] = [[] for _ in range(self.lanes)]
        least = [(0, lane) for lane in range(self.lanes)]
        for document in shuffled.tolist():
            load, lane = least[0]
            dealt[lane].append(document)
            heapq.heapreplace(least, (load + int(self.cost[document]), lane))
        return [np.array(documents) for documents in dealt]

    @property
    def epoch(self) -> int:
        """Number of epochs that all lanes here have read."""
        return int(self.cursors[:, 0].min())

    def fill(self, builder: BatchBuilder) -> None:
        """Add the next segment of each lane."""
        offset_B = self.cursors[:, 2]
        builder.reset_B[:] = offset_B == 0 if self.reset else ~self.cursors.any(axis=1)
        inside_B = (offset_B > 0) & (offset_B + self.segment < self.size_B)
        builder.fill(np.flatnonzero(inside_B), (self.begin_B + offset_B)[inside_B])
        offset_B[inside_B] += self.segment
        for row in np.flatnonzero(~inside_B).tolist():
            left = self.segment
            while left:
                left -= self._read(builder, row, left)
                if self.reset:
                    break

    def _read(self, builder: BatchBuilder, row: int, most: int) -> int:
        """Add at most `most` tokens of the lane's document and move its cursor; return how many."""
        epoch, index, offset = self.cursors[row].tolist()
        begin, size = int(self.begin_B[row]), int(self.size_B[row])
        count = min(most, size - offset)
        builder.add(row, begin + offset, count, offset == 0)
        if offset + count < size:
            self.cursors[row, 2] += count
            return count
        last = index + 1 == len(self.deal(epoch)[self.mine[row]])
        self.cursors[row] = [epoch + 1, 0, 0] if last else [epoch, index + 1, 0]
        self._open([row])
        return count

    def _open(self, rows: Iterable[int]) -> None:
        """Look up where the documents lie that the cursors of these rows are in."""
        for row in rows:
            epoch, index, _ = self.cursors[row].tolist()
            document = self.deal(epoch)[self.mine[row]][index]
            self.begin_B[row], self.size_B[row] = self.offset[document], self.length[document]

    def state(self) -> State:
        """Epoch, place in the epoch's order and offset in the document, of each lane."""
        epoch, document, offset = self.cursors.T.tolist()
        return {"epoch": epoch, "document": document, "offset": offset}

    def load_state(self, state: State) -> None:
        """Continue where `state` was taken."""
        self.cursors[:] = np.transpose([state["epoch"], state["document"], state["offset"]])
        self._open(range(len(self.mine)))

    def seek(self, step: int) -> None:
        """Continue as after `step` calls of `fill`."""
        for row, lane in enumerate(self.mine):
            self.cursors[row] = self._place(lane, step)
        self._open(range(len(self.mine)))

    def _place(self, lane: int, step: int) -> list[int]:
        """A lane's epoch, place in its order and offset in the document after `step` calls."""
        left, epoch = step if self.reset else step * self.segment, 0
        while left >= (total := int(self.cost[self.deal(epoch)[lane]].sum())):
            left, epoch = left - total, epoch + 1
        ends = np.cumsum(self.cost[self.deal(epoch)[lane]])
        index = int(np.searchsorted(ends, left, side="right"))
        into = left - int(ends[index - 1]) if index else left
        return [epoch, index, into * self.segment if self.reset else into]
