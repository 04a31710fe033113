"""Shards -> contiguous lanes -> segments, for training and for scoring.

A lane is one row of the batch whose segments follow one another in the text, so that memory can be
carried from segment to segment. A target is a token of the split and its input is the token before
it; before the first token of the split (in `documents` order: of each document) stands
`vocabulary.start`. So every token is a target exactly once an epoch, tails included.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np

from data.orders import Batch, BatchBuilder, DocumentOrder, State, StreamOrder
from data.shards import Split

__all__ = ["Batch", "LaneReader", "Order", "ScoringBatches", "State"]

Order = Literal["stream", "documents"]


class LaneReader:
    """Endless batches of this rank's lanes.

    lanes: number of lanes over all ranks; segment: tokens a segment; order: `stream` or
    `documents`; reset_documents: only in documents order, see DocumentOrder; first, count: this
    rank's slice of the lanes (all by default). The order of tokens depends on the shards' hash,
    `lanes`, `segment` and `seed` alone, not on ranks.
    """

    def __init__(
        self,
        split: Split,
        *,
        lanes: int,
        segment: int,
        seed: int = 0,
        order: Order = "stream",
        reset_documents: bool = False,
        first: int = 0,
        count: int | None = None,
    ) -> None:
        if lanes < 1 or segment < 1:
            raise ValueError("lanes and segment must each be at least 1")
        if reset_documents and order == "stream":
            raise ValueError("reset_documents has no effect in stream order: use order documents")
        self.split, self.segment = split, segment
        self.mine = range(first, first + (lanes - first if count is None else count))
        assert 0 <= first < self.mine.stop <= lanes
        self.plan: StreamOrder | DocumentOrder
        if order == "stream":
            self.plan = StreamOrder(split, lanes, segment, seed, self.mine)
        else:
            self.plan = DocumentOrder(split, lanes, segment, seed, self.mine, reset_documents)

    @property
    def segments_per_epoch(self) -> int:
        """Steps in which the lanes together read the split once, rounded up."""
        return self.plan.segments_per_epoch

    @property
    def epoch(self) -> int:
        """Number of whole epochs that every lane here has read."""
        return self.plan.epoch

    def next(self) -> Batch:
        """The next segment of each lane, in new arrays."""
        builder = BatchBuilder(self.split, len(self.mine), self.segment)
        self.plan.fill(builder)
        return builder.batch()

    def state(self) -> State:
        """Integers, or lists of one integer a lane of this rank, that `load_state` continues from.

        To move lanes between ranks, concatenate the lists in lane order and slice them anew.
        """
        return self.plan.state()

    def load_state(self, state: State) -> None:
        """Continue exactly where `state` was taken; ValueError for a state of another order."""
        expected = self.plan.state()
        if state.keys() != expected.keys():
            raise ValueError("the saved reading position belongs to another order of lanes")
        for value in state.values():
            if isinstance(value, list) and len(value) != len(self.mine):
                raise ValueError(
                    f"the saved reading position has {len(value)} lanes instead of {len(self.mine)}"
                )
        self.plan.load_state(state)

    def seek(self, step: int) -> None:
        """Continue as a new reader would after `step` calls of `next`."""
        self.plan.seek(step)


class ScoringBatches:
    """Sized iterable over the batches that score a split once.

    The split is cut into segments once; lanes take contiguous runs of segments. A lane that begins
    inside a text first reads the segments before it, unscored, so that its memory is what one long
    pass would have left there.

    lanes: rows of a batch; segment: tokens a segment (T); warmup: tokens that a lane reads unscored
    before its own, rounded up to whole segments (less where the text begins sooner: then nothing
    is missing); reset_documents: each document is a text of its own, beginning with empty memory,
    otherwise the whole split is one text. ValueError when a lane would have nothing to score.
    """

    def __init__(
        self, split: Split, *, lanes: int, segment: int, warmup: int, reset_documents: bool = False
    ) -> None:
        if lanes < 1 or segment < 1 or warmup < 0:
            raise ValueError("lanes and segment must be at least 1 and warmup at least 0")
        self.split, self.segment = split, segment
        self.position, self.count, self.begins = cut(split, segment, reset_documents)
        total = len(self.position)
        if total < lanes:
            raise ValueError(
                f"the split {split.name!r} has {total} segments of {segment} tokens, too few for "
                f"{lanes} lanes"
            )
        self.first = np.array([lane * total // lanes for lane in range(lanes)])
        self.stop = np.array([(lane + 1) * total // lanes for lane in range(lanes)])
        # A warm-up never reaches back past the beginning of the text that the lane is in.
        texts = np.flatnonzero(self.begins)
        begin = texts[np.searchsorted(texts, self.first, side="right") - 1]
        self.read_from = np.maximum(self.first - -(-warmup // segment), begin)

    def __len__(self) -> int:
        """Number of batches."""
        return int((self.stop - self.read_from).max())

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches in order."""
        return (self.batch(step) for step in range(len(self)))

    def batch(self, step: int) -> Batch:
        """Segment `step` of each lane; lanes that are through have unscored padding."""
        builder = BatchBuilder(self.split, len(self.first), self.segment)
        warming: list[int] = []
        for row, index in enumerate((self.read_from + step).tolist()):
            if index >= self.stop[row]:
                continue
            position, count = int(self.position[index]), int(self.count[index])
            builder.add(row, position, count, bool(self.begins[index]))
            builder.reset_B[row] = step == 0 or self.begins[index]
            if index < self.first[row]:
                warming.append(row)
        batch = builder.batch()
        batch.scored_BT[warming] = False
        return batch


def cut(
    split: Split, segment: int, reset_documents: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position and length of each segment of a split, and whether a text begins with it."""
    if reset_documents:
        start, length = split.documents["offset"], split.documents["tokens"]
    else:
        start, length = np.array([0]), np.array([len(split.tokens)])
    segments = -(-length // segment)
    ends = np.cumsum(segments)
    index = np.arange(ends[-1]) - np.repeat(ends - segments, segments)
    position = np.repeat(start, segments) + index * segment
    count = np.minimum(segment, np.repeat(start + length, segments) - position)
    return position, count, index == 0
