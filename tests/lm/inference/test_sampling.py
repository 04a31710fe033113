"""Sampling on distributions small enough to check by hand, and beside transformers' processors."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from lm.inference.inference_config import SamplingConfig
from lm.inference.sampling import (
    Sampler,
    adjusted,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalise_repetition,
    pick,
)

FRACTIONS = ("temperature", "top_p", "min_p", "typical", "repetition_penalty")
LOGITS = torch.tensor([[0.5, 0.25, 0.15, 0.1]]).log()


def kept(logits: torch.Tensor) -> list[int]:
    return logits[0].isfinite().nonzero()[:, 0].tolist()


def sampler(config: SamplingConfig, lanes: int = 1, seed: int = 0) -> Sampler:
    return Sampler(config, range(seed, seed + lanes), torch.zeros(lanes, 4, dtype=torch.bool))


@pytest.mark.parametrize(
    ("p", "expected"),
    [(0.4, [0]), (0.5, [0]), (0.6, [0, 1]), (0.9, [0, 1, 2]), (1.0, [0, 1, 2, 3])],
)
def test_the_nucleus_is_the_smallest_set_that_reaches_p(p: float, expected: list[int]) -> None:
    assert kept(keep_top_p(LOGITS.double(), p)) == expected


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("p", [0.5, 0.9, 0.999, 1 - 1e-6, 1 - 1e-9, 1 - 2**-53, 1.0])
def test_the_nucleus_of_a_large_vocabulary_reaches_p_and_needs_every_token(
    p: float, scale: float
) -> None:
    """In float32, whose sums of 32,000 probabilities reach 1 too early, as the sums in double."""
    logits = torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0)) * scale
    for row, left in zip(logits, keep_top_p(logits, p), strict=True):
        probability = (exp := np.exp(row.double().numpy() - float(row.max()))) / exp.sum()
        own = np.sort(probability[left.isfinite().numpy()])
        if p == 1.0:
            assert len(own) == 32_000
        elif len(own) < 32_000:
            assert math.fsum(own) >= p - 1e-13 and math.fsum(own[1:]) < p + 1e-13
        assert own[0] >= probability[~left.isfinite().numpy()].max(initial=0)
        assert torch.equal(left[left.isfinite()], row[left.isfinite()])


def test_a_typical_set_of_one_is_everything() -> None:
    logits = torch.randn(2, 32_000, generator=torch.Generator().manual_seed(0)) * 10
    assert keep_typical(logits, 1.0).isfinite().all()
    assert keep_top_k(logits, 10**30).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_extreme_settings_are_still_distributions(dtype: torch.dtype) -> None:
    logits = torch.tensor([[30.0, -30.0, 29.0, 0.0]], dtype=dtype)
    seen = torch.tensor([[True, True, False, True]])
    cold = adjusted(logits, SamplingConfig(temperature=1e-30), seen).softmax(-1)
    assert cold.tolist() == [[1, 0, 0, 0]]
    hot = adjusted(logits, SamplingConfig(temperature=1e30), seen).softmax(-1)
    torch.testing.assert_close(hot, torch.full((1, 4), 0.25, dtype=torch.float64))
    for penalty in (1e-30, 1e30):
        config = SamplingConfig(1e-30, repetition_penalty=penalty, top_p=0.9, min_p=1.0)
        assert adjusted(logits, config, seen).softmax(-1).sum() == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_no_numbers_are_refused(value: float, temperature: float) -> None:
    logits = LOGITS.clone()
    logits[0, 2] = value
    with pytest.raises(ValueError, match="use another checkpoint"):
        sampler(SamplingConfig(temperature=temperature))(logits)


def test_the_nucleus_follows_probability_not_position() -> None:
    assert kept(keep_top_p(LOGITS.flip(-1), 0.7)) == [2, 3]


@pytest.mark.parametrize(("k", "expected"), [(1, [0]), (3, [0, 1, 2]), (9, [0, 1, 2, 3])])
def test_top_k(k: int, expected: list[int]) -> None:
    assert kept(keep_top_k(LOGITS, k)) == expected


@pytest.mark.parametrize(("p", "expected"), [(0.1, [0, 1, 2, 3]), (0.28, [0, 1, 2]), (1.0, [0])])
def test_min_p_is_a_share_of_the_highest_probability(p: float, expected: list[int]) -> None:
    assert kept(keep_min_p(LOGITS.double(), p)) == expected


def test_typical_tokens_are_as_surprising_as_expected() -> None:
    """Entropy 1.21 nats; informations 0.69, 1.39, 1.90, 2.30: the second token is the closest."""
    assert kept(keep_typical(LOGITS.double(), 0.2)) == [1]
    assert kept(keep_typical(LOGITS.double(), 0.3)) == [0, 1]


def test_repetition_makes_seen_tokens_less_probable_whatever_their_sign() -> None:
    logits, seen = torch.tensor([[2.0, -1.0, 3.0, -4.0]]), torch.tensor([[True, True, False, True]])
    assert penalise_repetition(logits, seen, 2.0).tolist() == [[1.0, -2.0, 3.0, -8.0]]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.3, 2.0),
    top_k=st.integers(1, 40) | st.none(),
    top_p=st.floats(0.05, 0.99) | st.none(),
    min_p=st.floats(0.01, 0.9) | st.none(),
    typical=st.floats(0.05, 0.99) | st.none(),
    penalty=st.floats(0.5, 2.0) | st.none(),
)
def test_every_combination_agrees_with_transformers(
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    typical: float | None,
    penalty: float | None,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 30, generator=generator, dtype=torch.float64) * 3
    ids = torch.randint(30, (3, 12), generator=generator)
    seen = torch.zeros(3, 30, dtype=torch.bool).scatter(1, ids, True)
    config = SamplingConfig(temperature, top_k, top_p, min_p, typical, penalty)
    theirs = LogitsProcessorList()
    if penalty is not None:
        theirs.append(RepetitionPenaltyLogitsProcessor(penalty))
    theirs.append(TemperatureLogitsWarper(temperature))
    if top_k is not None:
        theirs.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        theirs.append(TopPLogitsWarper(top_p))
    if min_p is not None:
        theirs.append(MinPLogitsWarper(min_p))
    if typical is not None:
        theirs.append(TypicalLogitsWarper(typical))
    torch.testing.assert_close(adjusted(logits, config, seen), theirs(ids, logits))


def test_temperature_zero_is_greedy_and_others_follow_the_distribution() -> None:
    assert sampler(SamplingConfig(temperature=0))(LOGITS).tolist() == [0]
    lanes = 5000
    for temperature in (1.0, 0.5):
        draw = sampler(SamplingConfig(temperature=temperature), lanes)
        draws = torch.cat([draw(LOGITS.expand(lanes, 4)) for _ in range(4)])
        shares = torch.bincount(draws, minlength=4) / len(draws)
        expected = (LOGITS[0] / temperature).softmax(-1)
        torch.testing.assert_close(shares, expected, atol=0.02, rtol=0)


def test_a_lane_draws_the_same_in_any_company() -> None:
    config = SamplingConfig()
    together, alone = sampler(config, 3), sampler(config, 1, seed=2)
    for step in range(20):
        draws = together(LOGITS.expand(len(together.generators), 4))
        assert draws[-1] == alone(LOGITS)[0]
        if step == 10:
            together.keep([0, 2])


def test_a_point_of_the_sum_is_a_token_that_can_be_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, 5)
    points = torch.tensor([0.0, 0.5 - 2**-24, 0.5, 1 - 2**-24], dtype=torch.float64)
    assert pick(logits, points).tolist() == [1, 1, 3, 3]


def test_filters_bound_what_is_drawn() -> None:
    draw = sampler(SamplingConfig(top_k=3, top_p=0.6), 500)
    assert set(draw(LOGITS.expand(500, 4)).tolist()) == {0, 1}


def test_what_was_drawn_counts_as_seen() -> None:
    draw = sampler(SamplingConfig(temperature=0, repetition_penalty=5.0))
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.9]])
    assert [draw(logits).item() for _ in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"temperature": 1e-31},
        {"temperature": 1e31},
        *({name: float("nan")} for name in FRACTIONS),
        *({name: float("inf")} for name in FRACTIONS),
        *({name: -float("inf")} for name in FRACTIONS),
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"min_p": 1.1},
        {"typical": 0.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-31},
        {"repetition_penalty": 1e31},
        {"temperature": 0.0, "top_k": 5},
        {"temperature": 0.0, "min_p": 0.5},
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|no effect"):
        SamplingConfig(**values)  # type: ignore[arg-type]
