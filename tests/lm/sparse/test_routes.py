"""Sparse kernels against the dense product, and the choice among them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lm.sparse import routes
from lm.sparse.product import feature_major
from lm.sparse.routes import PATTERNS, Route, candidates, measured, take
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.sparse.sparse_linear import SparseLinear
from tests.lm.sparse.cases import PlainStore, holder, optimizer_of

KINDS = ("feedforward",)


def outcome(linear: SparseLinear, x: Tensor, first: int) -> list[Tensor]:
    """Product and gradients of a matrix, or of its rows from `first` on (inputs in two parts)."""
    x = x.clone().requires_grad_()
    if first == 0:
        y = linear(x)
    else:
        y = torch.cat(linear.rows(x[None].split([2, len(x) - 2], dim=1), first), dim=1)[0]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)
    linear.zero_grad()
    (y * weights).sum().backward()
    assert linear.values.grad is not None
    return [y, x.grad, linear.values.grad.clone()]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["csr", "csr_dense", "blocks", "bsr"]),
    st.floats(0.02, 0.9),
    st.floats(0.0, 1.0),
    st.booleans(),
    st.booleans(),
    st.integers(0, 100),
)
def test_a_route_equals_the_dense_one(
    route: Route, density: float, share: float, part: bool, exploring: bool, seed: int
) -> None:
    """Whole matrices and rows of them, before and after a refresh."""
    torch.manual_seed(seed)
    block = route in ("blocks", "bsr")
    config = SparseConfig(
        density,
        share * (1 - density),
        kinds=KINDS,
        granularity="block" if block else "unstructured",
        block=4 if block else 32,
    )
    weight = torch.randn(24, 16, dtype=torch.float64)
    model, topkast = holder(weight, config)
    linear = model.linear
    linear.exploring = exploring
    first, x = 8 if part else 0, torch.randn(3, 5, 16, dtype=torch.float64)
    optimizer = optimizer_of(model, PowerConfig(), 0.5, 0.0)
    for step in range(2):
        take(linear, "dense", torch.float64)
        expected = outcome(linear, x, first)
        linear.make_pattern = PATTERNS[route]
        for ours, theirs in zip(outcome(linear, x, first), expected, strict=True):
            torch.testing.assert_close(ours, theirs)
        optimizer.step()
        before = linear.index.clone()
        topkast.config = config
        topkast.refresh(step, PlainStore(model, optimizer))
        linear.exploring = exploring
    assert linear.patterns == {} and linear.index.shape == before.shape


def test_constant_rows_give_the_weights_no_gradient() -> None:
    weight = torch.randn(8, 8)
    model, _ = holder(weight, SparseConfig(0.5, 0.25, kinds=KINDS))
    x = torch.randn(2, 8, requires_grad=True)
    for route in ("dense", "csr"):
        take(model.linear, route, torch.float32)
        (product,) = model.linear.rows([x[None]], 4, constant=True)
        product.sum().backward()
        assert model.linear.values.grad is None and x.grad is not None


@pytest.mark.parametrize("route", ["dense", "csr"])
def test_products_may_be_changed_in_place(route: Route) -> None:
    """As activations do: the gradients are those of a copy that was changed."""
    model, _ = holder(torch.randn(8, 8), SparseConfig(0.5, 0.25, kinds=KINDS))
    take(model.linear, route, torch.float32)
    gradients = []
    for activation in (nn.functional.relu, nn.functional.relu_):
        x = torch.linspace(-1, 1, 48).view(2, 3, 8).requires_grad_()
        activation(model.linear(x)).square().sum().backward()
        gradients.append((x.grad, model.linear.values.grad.clone()))
        model.zero_grad()
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.equal(ours, theirs)


def test_activations_stay_feature_major_between_sparse_layers() -> None:
    """What a sparse product returns, and elementwise functions make of it, the next one reads
    without a copy."""
    model, _ = holder(torch.randn(8, 8), SparseConfig(0.5, kinds=KINDS))
    take(model.linear, "csr", torch.float32)
    hidden = nn.functional.gelu(model.linear(torch.randn(2, 3, 8)))
    assert feature_major(hidden).data_ptr() == hidden.data_ptr()


def test_the_fastest_route_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that says how long each route needs; dense unless another is clearly faster."""
    config = SparseConfig(0.5, kinds=KINDS)
    for seconds, expected in (
        ({"dense": 1.0, "csr": 0.5, "csr_dense": 0.7}, "csr"),
        ({"dense": 1.0, "csr": 0.9, "csr_dense": 2.0}, "dense"),
    ):
        model, _ = holder(torch.randn(8, 8), config)
        clock, taken = [0.0], ["dense"]
        real = routes.take

        def note(linear, route, dtype, taken=taken, real=real) -> None:
            taken.append(route)
            real(linear, route, dtype)

        def tick(clock=clock, taken=taken, seconds=seconds) -> float:
            clock.append(clock[-1] + seconds[taken[-1]])
            return clock[-1]

        monkeypatch.setattr(routes, "take", note)
        monkeypatch.setattr(routes.time, "process_time", tick)
        small = measured({"inner": model.linear}, tokens=4, dtype=torch.float32)
        assert small == {"inner": "dense"} and taken == ["dense"]
        monkeypatch.setattr(routes, "SMALLEST", 0)
        assert measured({"inner": model.linear}, tokens=4, dtype=torch.float32) == {
            "inner": expected
        }
        monkeypatch.undo()


def test_a_route_that_a_matrix_cannot_go_is_refused() -> None:
    model, _ = holder(torch.randn(8, 8), SparseConfig(0.5, kinds=KINDS))
    assert candidates(model.linear, torch.float32) == ["dense", "csr", "csr_dense"]
    with pytest.raises(ValueError, match="blocks does not go with granularity unstructured"):
        take(model.linear, "blocks", torch.float32)
    assert candidates(model.linear, torch.bfloat16) == ["dense"]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("granularity", "route", "dtype"),
    [
        ("block", "bsr", torch.float32),
        ("block", "bsr", torch.bfloat16),
        ("2:4", "semi", torch.bfloat16),
    ],
)
def test_gpu_routes_equal_the_dense_one(granularity, route: Route, dtype: torch.dtype) -> None:
    config = SparseConfig(
        0.5,
        0.25,
        kinds=KINDS,
        granularity=granularity,
        block=32,
    )
    model, _ = holder(torch.randn(256, 128), config)
    linear = model.to("cuda", dtype).linear
    x = torch.randn(4, 64, 128, device="cuda", dtype=dtype)
    take(linear, "dense", dtype)
    expected = outcome(linear, x, 0)
    take(linear, route, dtype)
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for ours, theirs in zip(outcome(linear, x, 0), expected, strict=True):
        assert (ours - theirs).norm() < tolerance * theirs.norm()
