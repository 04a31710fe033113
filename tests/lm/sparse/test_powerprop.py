"""Powerpropagation: weights, gradients and updates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from lm.sparse.powerprop import PowerLinear, effective, power, root
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from tests.lm.sparse.cases import holder, optimizer_of
from tests.lm.sparse.oracle import MaskedMatrix

KINDS = ("feedforward",)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20), st.floats(1, 5))
def test_root_is_the_inverse(weights: list[float], alpha: float) -> None:
    weight = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(power(root(weight, alpha), alpha), weight)


@pytest.mark.parametrize("alpha", [1.25, 1.5, 2.0, 4.0])
def test_gradient_is_finite_differences_and_zero_at_zero(alpha: float) -> None:
    """The formula p |p| ** (alpha - 1) under autograd gives NaN at 0 for alpha below 2."""
    config = PowerConfig(alpha, KINDS, factor="plain")
    parameter = torch.tensor([-1.5, -0.2, 0.0, 0.3, 2.0], dtype=torch.float64, requires_grad=True)
    effective(parameter, config).sum().backward()
    step = 1e-6
    with torch.no_grad():
        ahead, behind = power(parameter + step, alpha), power(parameter - step, alpha)
    tolerance = step ** (alpha - 1) if alpha < 2 else 1e-6
    expected = (ahead - behind) / (2 * step)
    torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=2 * tolerance)
    assert parameter.grad[2] == 0


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from([1.25, 2.0, 3.0]),
    st.sampled_from(["after", "plain"]),
    st.sampled_from(["weight", "parameter"]),
)
def test_training_a_dense_matrix_equals_the_oracle(alpha: float, factor, decay) -> None:
    """Everything in A is a dense matrix; here it is the dense module."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=torch.float64)
    config = PowerConfig(alpha, KINDS, factor, decay)
    model, topkast = holder(weight, SparseConfig(), config, bias=False)
    assert isinstance(model.linear, PowerLinear) and not topkast.matrices
    torch.testing.assert_close(model.linear.matrix(), weight)
    oracle = MaskedMatrix(weight, SparseConfig(1.0, kinds=KINDS, penalty=0.0), config)
    optimizer = optimizer_of(model, config, 0.01, 0.1)
    x, target = torch.randn(7, 5, dtype=torch.float64), torch.randn(7, 6, dtype=torch.float64)
    for _ in range(100):
        optimizer.zero_grad()
        F.mse_loss(model.linear(x), target).backward()
        optimizer.step()
        seen = oracle.seen()
        F.mse_loss(F.linear(x, seen), target).backward()
        oracle.update(seen.grad, 0.01, 0.1)
    torch.testing.assert_close(model.linear.weight.detach(), oracle.parameter)


def test_large_weights_move_fast_under_adam() -> None:
    """The plain chain rule is cancelled by Adam's normalisation; applied afterwards it is not."""
    moved = {}
    for factor in ("plain", "after"):
        model, _ = holder(
            torch.tensor([[0.01, 1.0]]),
            SparseConfig(),
            PowerConfig(2.0, KINDS, factor),
            bias=False,
        )
        before = model.linear.weight.detach().clone()
        optimizer = optimizer_of(model, PowerConfig(2.0, KINDS, factor), 0.001, 0.0)
        model.linear(torch.ones(1, 2)).sum().backward()
        optimizer.step()
        moved[factor] = (model.linear.weight.detach() - before).abs().flatten()
    torch.testing.assert_close(
        moved["plain"][1] / moved["plain"][0], torch.tensor(1.0), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(
        moved["after"][1] / moved["after"][0], torch.tensor(10.0), rtol=1e-3, atol=0
    )


def test_a_zero_matrix_is_refused() -> None:
    for config in (SparseConfig(), SparseConfig(0.5, kinds=KINDS)):
        with pytest.raises(ValueError, match="Powerpropagation never moves"):
            holder(torch.zeros(4, 4), config, PowerConfig(2.0, KINDS))
