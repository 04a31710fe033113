"""Batches on the device that computes: copied while it computes something else.

Shapes: B lanes of this rank, T tokens a segment.
"""

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from data.lanes import Batch, LaneReader, State
from lm.objectives.objective import Segment


def tensors(batch: Batch, rows: slice, device: torch.device) -> Segment:
    """Some lanes of a batch on the device."""
    arrays = (batch.inputs_BT, batch.targets_BT, batch.scored_BT, batch.reset_B)
    hosted = [torch.from_numpy(array[rows]) for array in arrays]
    if device.type == "cuda":
        # From other memory the copy would keep this thread waiting, whatever it is asked.
        hosted = [tensor.pin_memory() for tensor in hosted]
    return Segment(*(tensor.to(device, non_blocking=True) for tensor in hosted))


class Ahead(NamedTuple):
    """A batch that waits to be asked for."""

    segment: Segment
    scored: int
    """Targets that count."""
    state: State
    """Of the lanes after it."""
    copied: torch.cuda.Event | None
    """Tells on a GPU that it is there."""


class ReadAhead:
    """The segments of a LaneReader, on the device before they are asked for.

    A thread reads and copies them, on a GPU in a stream of its own, while the model computes with
    those before. `state` is that of the last batch handed out, so nothing read ahead is lost.

    Args:
        lanes: the reader, which from now on belongs to the thread.
        device: where the batches go.
        ahead: how many batches are read before they are asked for.
    """

    def __init__(self, lanes: LaneReader, device: torch.device, ahead: int) -> None:
        self._lanes, self._device, self._ahead = lanes, device, ahead
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, "read-ahead")
        self._waiting: deque[Future[Ahead]] = deque()
        self._state = lanes.state()

    def next(self) -> tuple[Segment, int]:
        """The next segment of each lane, and how many of its targets count."""
        while len(self._waiting) <= self._ahead:
            self._waiting.append(self._thread.submit(self._read))
        segment, scored, self._state, copied = self._waiting.popleft().result()
        if copied is not None:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(copied)
            for tensor in segment:
                # Its memory was taken for the other stream and must outlast the work in this one.
                tensor.record_stream(stream)
        return segment, scored

    def _read(self) -> Ahead:
        batch = self._lanes.next()
        with torch.cuda.stream(self._stream):
            segment = tensors(batch, slice(None), self._device)
            copied = self._stream.record_event() if self._stream else None
        return Ahead(segment, int(np.count_nonzero(batch.scored_BT)), self._lanes.state(), copied)

    def state(self) -> State:
        """Where reading is, as LaneReader has it: after the last batch that `next` returned."""
        return self._state

    def load_state(self, state: State) -> None:
        """Continue exactly where `state` was taken; ValueError for a state of another order."""
        self._waiting.clear()
        # In the thread, after what it is still reading.
        self._thread.submit(self._lanes.load_state, state).result()
        self._state = self._lanes.state()
