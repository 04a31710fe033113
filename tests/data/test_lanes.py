"""Lanes against loop-written oracles: order, coverage, resets, restoring and scoring."""

import json
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.lanes import Batch, LaneReader, ScoringBatches
from data.orders import DocumentOrder
from data.shards import Split

START = 10  # ByteTokenizer.start
FIRST = 1000  # id of the token at position 0
PAD = None

lengths = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
small = st.integers(1, 6)
segments = st.integers(1, 17)

MakeSplit = Callable[..., Split]


def pairs(batch: Batch, row: int) -> list[tuple[int, int] | None]:
    """(position of the input or -1 for start, position of the target) of a row; None is padding."""
    found: list[tuple[int, int] | None] = []
    for token, target, scored in zip(
        batch.inputs_BT[row].tolist(),
        batch.targets_BT[row].tolist(),
        batch.scored_BT[row].tolist(),
        strict=True,
    ):
        found.append((-1 if token == START else token - FIRST, target - FIRST) if scored else PAD)
    return found


def stream_oracle(total: int, lanes: int, segment: int, cut: int) -> Iterator[list[list]]:
    """One epoch in stream order, written as a loop over single tokens of a ring."""
    ring = [(position - 1, position) for position in [*range(cut, total), *range(cut)]]
    rows = [ring[lane * total // lanes : (lane + 1) * total // lanes] for lane in range(lanes)]
    while any(rows):
        yield [row[:segment] + [PAD] * (segment - len(row[:segment])) for row in rows]
        rows = [row[segment:] for row in rows]


@given(total=st.integers(1, 200), lanes=small, segment=segments, seed=st.integers(0, 5))
def test_stream_is_the_ring_cut_into_lanes(
    make_split: MakeSplit, total: int, lanes: int, segment: int, seed: int
) -> None:
    lanes = min(lanes, total)
    reader = LaneReader(make_split([total]), lanes=lanes, segment=segment, seed=seed)
    for epoch in range(3):
        first = reader.next()
        # The cut can be read off the first target of lane 0; in epoch 0 it is the beginning.
        cut = int(first.offset_B[0])
        assert epoch or cut == 0
        for step, rows in enumerate(stream_oracle(total, lanes, segment, cut)):
            batch = first if step == 0 else reader.next()
            assert [pairs(batch, row) for row in range(lanes)] == rows
            assert batch.reset_B.tolist() == [step == 0] * lanes
            offsets = [row[0][1] for row in rows if row[0]]
            assert offsets == [o for o, row in zip(batch.offset_B, rows, strict=True) if row[0]]
        assert step + 1 == reader.segments_per_epoch
        assert reader.epoch == epoch + 1


def test_cuts_of_epochs_depend_on_shards_lanes_and_seed_and_differ(make_split: MakeSplit) -> None:
    def cuts(shards_hash: str, lanes: int, seed: int) -> list[int]:
        split = make_split([10_000], shards_hash)
        reader = LaneReader(split, lanes=lanes, segment=100, seed=seed)
        found = []
        for epoch in range(4):
            reader.seek(epoch * reader.segments_per_epoch)
            found.append(int(reader.next().offset_B[0]))
        return found

    same = cuts("a", 2, 0)
    assert same[0] == 0
    assert len(set(same)) == 4
    assert same == cuts("a", 2, 0)
    others = [cuts("b", 2, 0), cuts("a", 4, 0), cuts("a", 2, 1)]
    assert all(other[1:] != same[1:] for other in others)


@given(lengths=lengths, lanes=small, segment=segments, reset=st.booleans())
def test_documents_order_reads_each_token_once_an_epoch(
    make_split: MakeSplit, lengths: list[int], lanes: int, segment: int, reset: bool
) -> None:
    split = make_split(lengths)
    lanes = min(lanes, np.count_nonzero(lengths))
    reader = LaneReader(
        split, lanes=lanes, segment=segment, order="documents", reset_documents=reset
    )
    batches = [reader.next()]
    while reader.epoch < 2:
        batches.append(reader.next())
    starts = set(split.documents["offset"][split.documents["tokens"] > 0].tolist())
    plan = reader.plan
    assert isinstance(plan, DocumentOrder)
    twice: Counter[int] = Counter()
    for row in range(lanes):
        read = [pair for batch in batches for pair in pairs(batch, row) if pair]
        # Whole documents in order, each begun after `start`.
        assert all(source == (-1 if t in starts else t - 1) for source, t in read)
        # A lane that is through with its share of two epochs has gone on to the third.
        share = sum(int(plan.length[plan.deal(epoch)[row]].sum()) for epoch in range(2))
        twice.update(target for _, target in read[:share])
    assert twice == Counter(dict.fromkeys(range(sum(lengths)), 2))


@given(lengths=lengths, lanes=small, segment=segments)
def test_resets_isolate_documents(
    make_split: MakeSplit, lengths: list[int], lanes: int, segment: int
) -> None:
    split = make_split(lengths)
    lanes = min(lanes, np.count_nonzero(lengths))
    reader = LaneReader(
        split, lanes=lanes, segment=segment, order="documents", reset_documents=True
    )
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for _ in range(20):
        batch = reader.next()
        for row in range(lanes):
            read = pairs(batch, row)
            targets = [pair[1] for pair in read if pair]
            assert len({owner[target] for target in targets}) == 1
            assert batch.reset_B[row] == (read[0] is not None and read[0][0] == -1)
            # Padding comes only at a document's end.
            last = targets[-1] + 1
            assert len(targets) == segment or last in (len(owner), *split.documents["offset"])


def test_documents_without_reset_are_packed_and_reset_only_once(make_split: MakeSplit) -> None:
    reader = LaneReader(make_split([3, 5, 4]), lanes=1, segment=7, order="documents")
    batches = [reader.next() for _ in range(9)]
    assert all(batch.scored_BT.all() for batch in batches)
    assert [bool(batch.reset_B[0]) for batch in batches] == [True] + [False] * 8


def test_order_of_documents_changes_with_the_epoch(make_split: MakeSplit) -> None:
    reader = LaneReader(make_split([1] * 50), lanes=1, segment=50, order="documents")
    orders = [reader.next().targets_BT[0].tolist() for _ in range(3)]
    assert all(sorted(order) == list(range(FIRST, FIRST + 50)) for order in orders)
    assert orders[0] != orders[1] != orders[2]


KINDS = st.sampled_from([("stream", False), ("documents", False), ("documents", True)])


@given(lengths=lengths, lanes=small, segment=segments, kind=KINDS, step=st.integers(0, 60))
@settings(max_examples=60)
def test_restoring_and_seeking_equal_never_having_stopped(
    make_split: MakeSplit, lengths: list[int], lanes: int, segment: int, kind: tuple, step: int
) -> None:
    order, reset = kind
    lanes = min(lanes, np.count_nonzero(lengths))

    def new() -> LaneReader:
        return LaneReader(
            make_split(lengths), lanes=lanes, segment=segment, order=order, reset_documents=reset
        )

    running, restored, sought = new(), new(), new()
    for _ in range(step):
        running.next()
    restored.load_state(json.loads(json.dumps(running.state())))
    sought.seek(step)
    assert sought.state() == running.state()
    for _ in range(3):
        expected = running.next()
        for reader in (restored, sought):
            found = reader.next()
            for name, value in vars(expected).items():
                assert np.array_equal(value, getattr(found, name)), name
            assert reader.epoch == running.epoch


@given(lengths=lengths, segment=segments, kind=KINDS, step=st.integers(0, 9))
@settings(max_examples=40)
def test_lanes_move_between_ranks_by_slicing_their_state(
    make_split: MakeSplit, lengths: list[int], segment: int, kind: tuple, step: int
) -> None:
    order, reset = kind
    lanes = 4 if np.count_nonzero(lengths) >= 4 and sum(lengths) >= 4 else 1

    def new(first: int, count: int) -> LaneReader:
        return LaneReader(
            make_split(lengths),
            lanes=lanes,
            segment=segment,
            order=order,
            reset_documents=reset,
            first=first,
            count=count,
        )

    whole = new(0, lanes)
    for _ in range(step):
        whole.next()
    state, expected = whole.state(), whole.next()
    for lane in range(lanes):
        part = new(lane, 1)
        part.load_state(
            {k: v[lane : lane + 1] if isinstance(v, list) else v for k, v in state.items()}
        )
        found = part.next()
        for name, value in vars(expected).items():
            assert np.array_equal(value[lane : lane + 1], getattr(found, name)), name


@given(
    lengths=lengths,
    lanes=small,
    segment=segments,
    warmup=st.integers(0, 30),
    reset=st.booleans(),
)
def test_scoring_scores_every_target_once_after_its_warm_up(
    make_split: MakeSplit, lengths: list[int], lanes: int, segment: int, warmup: int, reset: bool
) -> None:
    split = make_split(lengths)
    texts = [n for n in lengths if n] if reset else [sum(lengths)]
    total_segments = sum(-(-n // segment) for n in texts)
    lanes = min(lanes, total_segments)
    batches = ScoringBatches(
        split, lanes=lanes, segment=segment, warmup=warmup, reset_documents=reset
    )
    read = list(batches)
    assert len(read) == len(batches)
    begins = np.cumsum([0, *texts])[:-1]
    scored: list[int] = []
    for row in range(lanes):
        since_reset: list[int] | None = None
        for batch in read:
            tokens = batch.inputs_BT[row], batch.targets_BT[row], batch.scored_BT[row]
            real = [t - FIRST for t in tokens[1].tolist() if t >= FIRST]
            if batch.reset_B[row]:
                since_reset = []
            assert since_reset is not None or not real
            # What is read since the reset is one run of a text, from which nothing is left out.
            since_reset = (since_reset or []) + real
            assert since_reset == list(range(since_reset[0], since_reset[0] + len(since_reset)))
            mine = [t for t, is_scored in zip(real, tokens[2], strict=False) if is_scored]
            if mine:
                history = mine[0] - since_reset[0]
                text = begins[np.searchsorted(begins, mine[0], side="right") - 1]
                assert history >= min(warmup, mine[0] - text)
            for token, target in zip(tokens[0].tolist(), real, strict=False):
                assert token == (START if target in begins else target - 1 + FIRST)
            scored += mine
    assert sorted(scored) == list(range(sum(lengths)))


def test_number_of_lanes_does_not_change_the_cut_of_segments(make_split: MakeSplit) -> None:
    def cuts(lanes: int) -> set[int]:
        batches = ScoringBatches(make_split([100]), lanes=lanes, segment=7, warmup=21)
        return {
            int(o) for b in batches for o, s in zip(b.offset_B, b.scored_BT[:, 0], strict=True) if s
        }

    assert cuts(1) == cuts(2) == cuts(5) == set(range(0, 100, 7))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lanes": 0, "segment": 1}, "at least 1"),
        ({"lanes": 9, "segment": 1}, "8 tokens, too few for 9 lanes"),
        ({"lanes": 3, "segment": 1, "order": "documents"}, "2 documents, too few for 3 lanes"),
        ({"lanes": 1, "segment": 1, "reset_documents": True}, "no effect in stream order"),
    ],
)
def test_impossible_lanes_are_refused(make_split: MakeSplit, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LaneReader(make_split([3, 0, 5]), **options)


def test_scoring_lanes_with_nothing_to_score_are_refused(make_split: MakeSplit) -> None:
    with pytest.raises(ValueError, match="2 segments of 4 tokens, too few for 3 lanes"):
        ScoringBatches(make_split([8]), lanes=3, segment=4, warmup=0)


def test_a_state_of_another_reader_is_refused(make_split: MakeSplit) -> None:
    stream = LaneReader(make_split([9, 9]), lanes=2, segment=3)
    documents = LaneReader(make_split([9, 9]), lanes=2, segment=3, order="documents")
    with pytest.raises(ValueError, match="another order"):
        documents.load_state(stream.state())
    one = LaneReader(make_split([9, 9]), lanes=2, segment=3, order="documents", count=1)
    with pytest.raises(ValueError, match="2 lanes instead of 1"):
        one.load_state(documents.state())
