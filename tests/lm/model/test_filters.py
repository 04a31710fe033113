"""The bank of filters against its closed form, and what it keeps of the past."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lm.model.filters import FilterBank
from lm.model.memory import View
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from tests.lm.model.cases import TINY, VOCABULARY, build, run, stream

FILTERED = replace(TINY, filters=6, filter_longest=300.0)
BARE = replace(FILTERED, memory=0, compressed=0)
"""Nothing but filters tells of earlier segments."""


def bank(config: ModelConfig = FILTERED) -> FilterBank:
    torch.manual_seed(0)
    return FilterBank(config).double()


def closed_form(filters: FilterBank, x_BTD: Tensor, before_BP: Tensor) -> Tensor:
    """m_t = g^(t + 1) m_0 + sum over s <= t of g^(t - s) sqrt(1 - g^2) u_s, a matrix a filter."""
    steps = x_BTD.shape[1]
    g_P = torch.exp(-1 / filters.times(x_BTD.device))
    age_TT = torch.arange(steps)[:, None] - torch.arange(steps)
    response_PTT = torch.where(age_TT >= 0, g_P[:, None, None] ** age_TT.clamp(min=0), 0.0)
    u_BTP = filters.write(x_BTD).clamp(min=0) * torch.sqrt(1 - g_P**2)
    kept_TP = g_P ** torch.arange(1, steps + 1)[:, None]
    return torch.einsum("pts,bsp->btp", response_PTT, u_BTP) + kept_TP * before_BP[:, None]


@pytest.mark.parametrize("steps", [1, 2, 7, 64])
def test_the_recurrence_is_the_closed_form_and_so_is_its_gradient(steps: int) -> None:
    filters = bank()
    x, before = torch.randn(2, steps, 8).double(), torch.randn(2, 6).double()
    results = []
    for way in ("ours", "closed"):
        inputs = x.clone().requires_grad_()
        if way == "ours":
            read, levels = filters(inputs, before)
        else:
            levels = closed_form(filters, inputs, before)
            read = filters.read(levels)
        wanted = [inputs, filters.write.weight, filters.read.weight]
        loss = (read.sin() * torch.arange(1, steps + 1)[:, None]).sum()
        results.append([read, levels, *torch.autograd.grad(loss, wanted)])
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_time_constants_are_log_spaced_from_the_longest_to_one_token() -> None:
    times = bank().times(torch.device("cpu"))
    assert times[0] == pytest.approx(300)
    assert times[-1] == pytest.approx(1)
    ratios = times[1:] / times[:-1]
    torch.testing.assert_close(ratios, torch.full_like(ratios, 300 ** (-1 / 5)))
    alone = bank(replace(FILTERED, filters=1)).times(torch.device("cpu"))
    assert alone.tolist() == [pytest.approx(300)]


def test_noise_keeps_its_variance_in_every_filter() -> None:
    filters = bank(replace(FILTERED, filter_longest=50.0))
    with torch.no_grad():
        filters.write.weight.copy_(torch.eye(6, 8))
        _, levels = filters(torch.randn(40, 400, 8).double(), torch.zeros(40, 6).double())
    # Of the positive half of a normal variable.
    wanted = torch.full((6,), 0.5 - 0.5 / math.pi).double()
    torch.testing.assert_close(levels[:, 300:].var((0, 1)), wanted, rtol=0.35, atol=0)


def test_a_token_is_felt_far_beyond_all_memory_and_no_gradient_goes_there() -> None:
    model = build(BARE)
    tokens = stream(20, 1, BARE)
    other = tokens.clone()
    other[0, 0] = (other[0, 0] + 1) % VOCABULARY
    one, two = (run(model, text)[0][0, -1] for text in (tokens, other))
    assert (one - two).abs().max() > 1e-4
    assert BARE.range == 300
    memory = model.empty_memory(1)
    before = tuple(torch.ones_like(layer["filters"]).requires_grad_() for layer in memory.layers)
    memory = memory.with_named(filters=before).with_counts(read=torch.ones(1, dtype=torch.int64))
    output = model(tokens[:, : BARE.segment], memory)
    assert not output.memory.layers[0]["filters"].requires_grad
    output.predictions.logsumexp(-1).sum().backward()
    assert all(level.grad is None for level in before)
    for block in model.layers:
        assert block.filters is not None
        assert block.filters.write.weight.grad is not None
        assert block.filters.write.weight.grad.abs().max() > 0
        assert block.filters.read.weight.grad is not None


def test_any_cut_equals_the_whole() -> None:
    """One layer, because inputs of the next know of the segment alone where there is no memory."""
    whole, cut = (build(replace(BARE, layers=1, segment=n)) for n in (24, 3))
    cut.load_state_dict(whole.state_dict())
    levels = []
    for model in (whole, cut):
        _, memory = run(model, stream(1, 2, whole.config))
        levels.append(memory.layers[0]["filters"])
        assert memory.counts["read"].tolist() == [24, 24]
    torch.testing.assert_close(*levels, rtol=1e-11, atol=1e-12)


def test_a_lane_that_is_reset_forgets_and_others_do_not() -> None:
    model = build(BARE)
    _, memory = run(model, stream(3, 2, BARE))
    part = stream(1, 2, BARE, seed=7)
    fresh = model(part, model.empty_memory(2))
    after = model(part, memory.reset(torch.tensor([False, True])))
    kept = model(part, memory)
    for name in ("filters", "memory"):
        states = (output.memory.layers[1][name] for output in (after, fresh, kept))
        mine, empty, full = states
        assert torch.equal(mine[1], empty[1])
        assert torch.equal(mine[0], full[0])
    assert torch.equal(after.predictions[1], fresh.predictions[1])
    assert not torch.allclose(after.predictions[0], fresh.predictions[0])


def test_filters_that_are_not_seen_move_on_all_the_same() -> None:
    """Of a lane that is to do without memory, and of none beside it."""
    model = build(BARE).train()
    _, memory = run(model, stream(3, 2, BARE))
    part = stream(1, 2, BARE, seed=7)
    no, one = torch.zeros(2, dtype=torch.bool), torch.tensor([True, False])
    states = model.read_segment(part, memory, view=View(one, one, no, no))
    fresh = model.read_segment(part, model.empty_memory(2))
    kept = model.read_segment(part, memory)
    torch.testing.assert_close(states.hidden_BTD[0], fresh.hidden_BTD[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(states.hidden_BTD[1], kept.hidden_BTD[1], rtol=1e-12, atol=1e-12)
    # The next layer's inputs are others.
    mine, theirs = (each.memory.layers[0]["filters"] for each in (states, kept))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert states.memory.counts["read"].tolist() == [16, 16]


def test_slow_filters_move_where_weights_are_bfloat16() -> None:
    """Its steps near 1 are 1/128, more than one token moves a filter of thousands."""
    config = replace(BARE, filter_longest=5000.0)
    torch.manual_seed(0)
    model = CompressiveTransformer(config, VOCABULARY)
    tokens = torch.full((1, 400), 3)
    _, exact = run(model.double(), tokens)
    _, memory = run(model.bfloat16(), tokens)
    level = memory.layers[0]["filters"]
    assert level.dtype == torch.float32
    torch.testing.assert_close(level.double(), exact.layers[0]["filters"], rtol=0.03, atol=0.03)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ValueError, match=r"filter_longest has no effect with model.filters 0"):
        replace(TINY, filter_longest=10.0)
    with pytest.raises(ValueError, match=r"filter_longest must be above 1 and finite, not 1.0"):
        replace(FILTERED, filter_longest=1.0)
    with pytest.raises(ValueError, match=r"filter_longest must be above 1 and finite, not inf"):
        replace(FILTERED, filter_longest=math.inf)
