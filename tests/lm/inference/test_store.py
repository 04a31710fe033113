"""The ring of keys and values against a list, whatever is added at once."""

import pytest
import torch
from torch import Tensor

from lm.inference.store import Store

LANES, CAPACITY, SLACK, WIDTH = 3, 5, 4, 6


def added(steps: int, seed: int = 0) -> tuple[Store, list[list[tuple[Tensor, int]]], Tensor]:
    """A store that took several chunks, the list of each lane's entries, and the last counts."""
    random = torch.Generator().manual_seed(seed)
    store = Store.empty(LANES, CAPACITY, SLACK, torch.zeros(WIDTH, dtype=torch.float64))
    lists: list[list[tuple[Tensor, int]]] = [[] for _ in range(LANES)]
    counts = torch.zeros(LANES, 1, dtype=torch.int64)
    for step in range(steps):
        size = 1 + step % SLACK
        keys = torch.randn(LANES, size, WIDTH, generator=random, dtype=torch.float64)
        # Of a few kinds only, so that distances are equal.
        keys = keys.sign()
        values = torch.randint(0, 99, (LANES, size), generator=random)
        live = torch.rand(LANES, size, generator=random) < torch.tensor([[1.0], [0.6], [0.1]])
        counts = store.add(keys, values, live)
        for lane in range(LANES):
            for column in live[lane].nonzero()[:, 0].tolist():
                lists[lane].append((keys[lane, column], int(values[lane, column])))
        assert counts[:, -1].tolist() == [len(each) for each in lists]
    return store, lists, counts


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 11])
def test_the_nearest_are_those_of_a_list(steps: int) -> None:
    """Partly filled, full and wrapped around; what is as near comes newest first; each query sees
    what had been written at its time and no more."""
    store, lists, counts = added(steps)
    random = torch.Generator().manual_seed(9)
    queries = torch.randn(LANES, counts.shape[1], WIDTH, generator=random, dtype=torch.float64)
    queries = queries.sign()
    for k in (1, 3, CAPACITY + SLACK + 5):
        found = store.nearest(queries, counts, k)
        for lane in range(LANES):
            for place in range(counts.shape[1]):
                end = int(counts[lane, place])
                seen = list(enumerate(lists[lane][:end]))[-CAPACITY:]
                query = queries[lane, place]
                expected = sorted(
                    (float((query - key).square().sum()), -age, value, float(query @ key))
                    for age, (key, value) in seen
                )[:k]
                live = found.live_BTK[lane, place]
                assert live.sum() == len(expected) and live[: len(expected)].all()
                slots = found.slots_BTK[lane, place][live]
                assert store.values_BR[lane, slots].tolist() == [row[2] for row in expected]
                squares = found.squares_BTK[lane, place][live]
                torch.testing.assert_close(squares.tolist(), [row[0] for row in expected])
                products = found.products_BTK[lane, place][live]
                torch.testing.assert_close(products.tolist(), [row[3] for row in expected])


def test_lanes_are_reset_and_selected_apart() -> None:
    store, lists, _ = added(6)
    some = store.select([2, 0, 0])
    reset = some.reset(torch.tensor([False, False, True]))
    assert reset.written_B.tolist() == [len(lists[2]), len(lists[0]), 0]
    key = torch.full((3, 1, WIDTH), 5.0, dtype=torch.float64)
    counts = reset.add(key, torch.tensor([[7], [8], [9]]), torch.ones(3, 1, dtype=torch.bool))
    found = reset.nearest(key, counts, 2)
    assert found.live_BTK[2, 0].tolist() == [True, False]
    assert reset.values_BR[2, found.slots_BTK[2, 0, 0]] == 9
    # The lanes that it was taken from know nothing of it.
    assert store.written_B.tolist() == [len(each) for each in lists]
    assert not (store.keys_BRD == 5.0).any()


def test_it_comes_back_from_its_tensors_or_says_why_not() -> None:
    store, _, counts = added(5)
    again = Store(store.tensors(), CAPACITY)
    queries = torch.ones(LANES, counts.shape[1], WIDTH, dtype=torch.float64)
    before, after = (each.nearest(queries, counts, 2) for each in (store, again))
    assert torch.equal(before.slots_BTK, after.slots_BTK)
    with pytest.raises(ValueError, match="lacks norms"):
        Store({n: each for n, each in store.tensors().items() if n != "norms"}, CAPACITY)
    with pytest.raises(ValueError, match="another capacity"):
        Store(store.tensors(), CAPACITY + SLACK)
