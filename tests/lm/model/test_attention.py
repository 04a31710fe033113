"""Attention routes against each other where the oracle does not reach."""

from dataclasses import replace

import pytest
import torch

from lm.model import attention as attention_module
from lm.model.attention import RelativeAttention
from tests.lm.model.cases import TINY, build


def test_dropped_weights_are_the_same_on_both_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs and every gradient, with memory partly empty."""
    config = replace(TINY, attention_dropout=0.4, segment=5, memory=7)
    attention = build(config).layers[0].attention
    torch.manual_seed(1)
    inputs = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    slots = torch.randn(3, config.slots, 8, dtype=torch.float64)
    live = torch.arange(config.slots) >= torch.tensor([[0], [4], [10]])
    results = []
    for blocked in (True, False):
        if not blocked:
            monkeypatch.setattr(attention_module, "on_cpu", lambda tensor: False)
        torch.manual_seed(2)
        output = attention(inputs, slots, live).output_BTD
        wanted = [inputs, *attention.parameters()]
        results.append((output, *torch.autograd.grad(output.square().sum(), wanted)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    attention.eval()
    assert not torch.allclose(results[0][0], attention(inputs, slots, live).output_BTD)


def test_dropped_weights_keep_their_mean() -> None:
    attention = RelativeAttention(replace(TINY, attention_dropout=0.25))
    factors = attention._dropped_weights(torch.zeros(1, 1, 400, 2), 400)
    assert factors is not None
    assert factors.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert factors.mean().item() == pytest.approx(1.0, abs=0.02)
