"""Reading ahead: the same batches as without, and the state of those that were handed out."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.lanes import LaneReader
from data.shards import Shards
from lm.feeding import ReadAhead, tensors

CPU = torch.device("cpu")
KINDS = st.sampled_from([("stream", False), ("documents", False), ("documents", True)])

MakeReader = Callable[..., LaneReader]


@pytest.fixture(scope="module")
def new_reader(shards: Shards) -> MakeReader:
    """Function that makes readers of one split."""
    split = shards.split("train")

    def new(kind: tuple[Any, bool] = ("stream", False)) -> LaneReader:
        order, reset = kind
        return LaneReader(split, lanes=3, segment=500, order=order, reset_documents=reset)

    return new


@given(kind=KINDS, ahead=st.integers(0, 4), before=st.integers(0, 40), after=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_state_is_that_of_the_last_batch_handed_out(
    new_reader: MakeReader, kind: tuple, ahead: int, before: int, after: int
) -> None:
    plain, feed = new_reader(kind), ReadAhead(new_reader(kind), CPU, ahead)
    assert feed.state() == plain.state()
    for _ in range(before):
        expected, (found, scored) = plain.next(), feed.next()
        for name, value in found._asdict().items():
            assert np.array_equal(getattr(expected, name), value), name
        assert scored == expected.scored_BT.sum()
        assert feed.state() == plain.state()
    state = json.loads(json.dumps(feed.state()))
    for _ in range(after):
        feed.next()
    fresh = ReadAhead(new_reader(kind), CPU, ahead)
    expected_inputs = [plain.next().inputs_BT.tolist() for _ in range(3)]
    for continued in (feed, fresh):
        continued.load_state(state)
        assert continued.state() == state
        assert [continued.next()[0].inputs_BT.tolist() for _ in range(3)] == expected_inputs


def test_tensors_of_some_lanes_are_those_of_the_arrays(new_reader: MakeReader) -> None:
    plain, (ahead, _) = new_reader().next(), ReadAhead(new_reader(), CPU, 1).next()
    for rows in (slice(None), slice(1, 3)):
        for inputs, targets, scored, reset in (tensors(plain, rows, CPU), ahead.lanes(rows)):
            assert torch.equal(inputs, torch.from_numpy(plain.inputs_BT[rows]))
            assert torch.equal(targets, torch.from_numpy(plain.targets_BT[rows]))
            assert torch.equal(scored, torch.from_numpy(plain.scored_BT[rows]))
            assert torch.equal(reset, torch.from_numpy(plain.reset_B[rows]))


def test_a_mistake_in_the_thread_is_raised_where_it_is_waited_for(new_reader: MakeReader) -> None:
    feed = ReadAhead(new_reader(), CPU, 2)
    feed.next()
    with pytest.raises(ValueError, match="another order"):
        feed.load_state({"epoch": [0], "document": [0], "offset": [0]})


@pytest.mark.gpu
def test_batches_reach_the_gpu_while_it_computes(new_reader: MakeReader) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    plain, feed = new_reader(), ReadAhead(new_reader(), device, ahead=2)
    feed.next()
    plain.next()
    torch.cuda.synchronize()
    # Some seconds of work in the stream that computes, of which reading must not wait for the end.
    torch.cuda._sleep(5_000_000_000)
    computed = torch.cuda.current_stream().record_event()
    other = torch.cuda.Stream()
    for _ in range(4):
        expected = plain.next()
        with torch.cuda.stream(other):
            (inputs, targets, scored, reset), _ = feed.next()
            assert np.array_equal(inputs.cpu().numpy(), expected.inputs_BT)
            assert np.array_equal(targets.cpu().numpy(), expected.targets_BT)
            assert np.array_equal(scored.cpu().numpy(), expected.scored_BT)
            assert np.array_equal(reset.cpu().numpy(), expected.reset_B)
    assert not computed.query()
    torch.cuda.synchronize()


@pytest.mark.gpu
def test_a_plain_batch_is_copied_without_waiting(new_reader: MakeReader) -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    batch = new_reader().next()
    tensors(batch, slice(None), device)
    torch.cuda.synchronize()
    torch.cuda._sleep(5_000_000_000)
    computed = torch.cuda.current_stream().record_event()
    inputs, *_ = tensors(batch, slice(None), device)
    assert not computed.query()
    assert np.array_equal(inputs.cpu().numpy(), batch.inputs_BT)
