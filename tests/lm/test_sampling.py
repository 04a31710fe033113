"""Sampling on distributions small enough to check by hand."""

import pytest
import torch

from lm.sampling import SamplingConfig, keep_top_k, keep_top_p, sample

LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.4, [0]), (0.5, [0]), (0.6, [0, 1]), (0.9, [0, 1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    assert kept(keep_top_p(LOGITS.double(), p)) == expected


def test_the_nucleus_follows_probability_not_position() -> None:
    assert kept(keep_top_p(LOGITS.flip(-1), 0.7)) == [2, 3]


@pytest.mark.parametrize(("k", "expected"), [(1, [0]), (3, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_top_k(k: int, expected: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == expected


def test_temperature_zero_is_greedy_and_others_follow_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    assert sample(LOGITS, SamplingConfig(temperature=0), generator).tolist() == [0]
    many = LOGITS.expand(20000, 4)
    for temperature in (1.0, 0.5):
        draws = sample(many, SamplingConfig(temperature=temperature), generator)
        shares = torch.bincount(draws, minlength=4) / len(draws)
        expected = (LOGITS[0] / temperature).softmax(-1)
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


def test_filters_bound_what_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    config = SamplingConfig(top_k=3, top_p=0.6)
    assert set(sample(LOGITS.expand(500, 4), config, generator).tolist()) == {0, 1}


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"temperature": 0.0, "top_k": 5},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|no effect"):
        SamplingConfig(**values)  # type: ignore[arg-type]
