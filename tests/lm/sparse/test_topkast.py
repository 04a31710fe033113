"""Always-sparse training against the masked dense oracle."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.sparse.sparse_linear import SparseLinear
from lm.sparse.topkast import TopKast
from tests.lm.sparse.cases import Holder, PlainStore, holder, optimizer_of
from tests.lm.sparse.oracle import MaskedMatrix

LR, DECAY = 0.01, 0.1


@st.composite
def configs(draw: st.DrawFn) -> tuple[SparseConfig, tuple[int, int]]:
    """A config and the shape of a matrix that suits it."""
    granularity = draw(st.sampled_from(["unstructured", "block", "2:4"]))
    density = 0.5 if granularity == "2:4" else draw(st.floats(0.02, 1.0))
    if granularity == "2:4":
        exploration = draw(st.sampled_from([0.0, 0.25, 0.5]))
    else:
        exploration = draw(st.one_of(st.just(0.0), st.floats(0.0, 1 - density)))
    explores = exploration > 0
    side = draw(st.sampled_from([2, 4])) if granularity == "block" else 4
    shape = (draw(st.integers(1, 4)) * side, draw(st.integers(1, 4)) * side)
    stop = draw(st.sampled_from([None, 0, 15])) if explores else None
    config = SparseConfig(
        density,
        exploration,
        kinds=("feedforward",),
        granularity=granularity,
        block=side if granularity == "block" else 32,
        refresh=draw(st.integers(1, 12)),
        penalty=draw(st.sampled_from([0.0, 0.05])),
        explored=draw(st.sampled_from(["largest", "random"])) if explores else "largest",
        stop_exploration=stop,
    )
    return config, shape


powers = st.one_of(
    st.just(PowerConfig()),
    st.builds(
        PowerConfig,
        alpha=st.sampled_from([1.25, 2.0, 3.0]),
        kinds=st.just(("feedforward",)),
        factor=st.sampled_from(["after", "plain"]),
        decay=st.sampled_from(["weight", "parameter"]),
    ),
)


def noise_of(topkast: TopKast, step: int) -> Tensor | None:
    (matrix,) = topkast.matrices.values()
    return topkast._exploration(0, step, matrix)


def regression(shape: tuple[int, int], tokens: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, inputs and targets that want other weights."""
    rows, columns = shape
    weight = torch.randn(rows, columns, dtype=torch.float64)
    x = torch.randn(tokens, columns, dtype=torch.float64)
    wanted = torch.randn(rows, columns, dtype=torch.float64)
    return weight, x, x @ wanted.T


def train_both(
    model: Holder, topkast: TopKast, oracle: MaskedMatrix, data: tuple[Tensor, Tensor], steps: int
) -> None:
    """Train the same matrix in both forms and compare all that can be seen on the way."""
    linear, (x, target) = model.linear, data
    assert isinstance(linear, SparseLinear)
    config = topkast.config
    decay = 0.0 if config.stop_exploration is not None else DECAY
    optimizer = optimizer_of(model, oracle.power, LR, decay)
    bias = torch.zeros(target.shape[1], dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        linear.bias.zero_()
    bias_optimizer = torch.optim.AdamW([bias], lr=LR, weight_decay=0.0)
    (matrix,) = topkast.matrices.values()
    for step in range(1, steps + 1):
        x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
        y = linear(x_ours)
        seen = oracle.seen()
        expected = F.linear(x_theirs, seen, bias)
        torch.testing.assert_close(y, expected)
        optimizer.zero_grad()
        penalty = linear.penalty()
        loss = F.mse_loss(y, target)
        (loss if penalty is None else loss + penalty).backward()
        bias_optimizer.zero_grad()
        F.mse_loss(expected, target).backward()
        torch.testing.assert_close(x_ours.grad, x_theirs.grad)
        torch.testing.assert_close(linear.bias.grad, bias.grad)
        optimizer.step()
        bias_optimizer.step()
        oracle.update(seen.grad, LR, decay)
        if topkast.due(step):
            topkast.refresh(step, PlainStore(model, optimizer))
            oracle.refresh(noise_of(topkast, step), linear.exploring)
        if step % 25 == 0 or step == steps:
            torch.testing.assert_close(matrix.dense(), oracle.parameter, rtol=1e-7, atol=1e-9)


@settings(max_examples=15, deadline=None)
@given(configs(), powers, st.integers(0, 1000))
def test_training_equals_the_masked_oracle(
    case: tuple[SparseConfig, tuple[int, int]], power: PowerConfig, seed: int
) -> None:
    """Forward, gradients, penalty, update and refresh over 200 steps of Adam."""
    config, shape = case
    torch.manual_seed(seed)
    weight, x, target = regression(shape)
    oracle = MaskedMatrix(weight, config, power)
    model, topkast = holder(weight, config, power)
    if noise_of(topkast, 0) is not None:
        oracle.active, oracle.backward = oracle.choose(noise_of(topkast, 0))
    train_both(model, topkast, oracle, (x, target), steps=200)


def test_equal_weights_are_taken_in_order() -> None:
    """Ties: the same choice on every rank and machine."""
    weight = torch.tensor([[1.0, -1.0, 1.0, 2.0], [1.0, 1.0, -1.0, 1.0]])
    model, _ = holder(weight, SparseConfig(0.375, 0.25, kinds=("feedforward",)))
    linear = model.linear
    assert linear.index.tolist() == [0, 1, 3, 2, 4]
    assert linear.values.tolist() == [1.0, -1.0, 2.0, 1.0, 1.0]


def test_weights_train_after_a_refresh() -> None:
    """The known port puts a new tensor in the module at a refresh while the optimiser keeps moving
    the old one, so that no weight trains any more."""
    torch.manual_seed(0)
    weight, x, target = regression((16, 16))
    config = SparseConfig(0.3, 0.3, kinds=("feedforward",), refresh=5, penalty=0.0)
    model, topkast = holder(weight, config)
    optimizer = optimizer_of(model, PowerConfig(), LR, 0.0)
    parameter = model.linear.values
    losses = []
    for step in range(1, 61):
        optimizer.zero_grad()
        loss = F.mse_loss(model.linear(x), target)
        loss.backward()
        before = parameter.detach().clone()
        optimizer.step()
        assert model.linear.values is parameter
        moved = (parameter != before).double().mean()
        assert moved == 1, f"{1 - moved:.0%} of the weights of B stand still at step {step}"
        losses.append(loss.item())
        if topkast.due(step):
            changed = topkast.refresh(step, PlainStore(model, optimizer))
    assert changed["sparse_ever_active"] > 0.3
    assert losses[-1] < 0.6 * losses[5]


def test_what_leaves_the_backward_set_waits_unmoved() -> None:
    torch.manual_seed(1)
    weight, x, target = regression((16, 16))
    config = SparseConfig(0.2, 0.1, kinds=("feedforward",), refresh=3)
    model, topkast = holder(weight, config)
    optimizer = optimizer_of(model, PowerConfig(), 0.1, 0.1)
    (matrix,) = topkast.matrices.values()
    for step in range(1, 60):
        outside = torch.ones(256, dtype=torch.bool)
        outside[model.linear.index.long()] = False
        before = matrix.dense().flatten()[outside]
        optimizer.zero_grad()
        F.mse_loss(model.linear(x), target).backward()
        optimizer.step()
        assert torch.equal(matrix.dense().flatten()[outside], before)
        if topkast.due(step):
            topkast.refresh(step, PlainStore(model, optimizer))


def test_statistics_of_a_refresh() -> None:
    """Four weights, two in A and one more in B; a weight is promoted, one comes from outside."""
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    model, topkast = holder(weight, SparseConfig(0.5, 0.25, kinds=("feedforward",)), bias=False)
    optimizer = optimizer_of(model, PowerConfig(), LR, 0.0)
    with torch.no_grad():
        model.linear.values.copy_(torch.tensor([0.5, 0.25, 5.0]))
    changed = topkast.refresh(100, PlainStore(model, optimizer))
    assert model.linear.index.tolist() == [2, 3, 0]
    assert model.linear.values.tolist() == [5.0, 1.0, 0.5]
    assert changed == {
        "sparse_changed": 1.0,
        "sparse_promoted": 0.5,
        "sparse_backward_changed": pytest.approx(1 / 3),
        "sparse_ever_active": 1.0,
    }


def test_a_static_mask_is_random_and_stays() -> None:
    torch.manual_seed(0)
    weight = torch.randn(32, 32)
    config = SparseConfig(0.25, kinds=("feedforward",), choice="random", refresh=None)
    (model, topkast), (again, _) = holder(weight, config), holder(weight, config)
    assert not topkast.due(100)
    index = model.linear.index
    assert torch.equal(index, again.linear.index) and len(index) == 256
    largest = weight.abs().flatten().topk(256).indices
    shared = len(set(index.tolist()) & set(largest.tolist()))
    assert 30 < shared < 110


def test_a_mapped_reservoir_holds_the_same(tmp_path) -> None:
    torch.manual_seed(0)
    weight, x, target = regression((16, 16))
    config = SparseConfig(0.3, 0.3, kinds=("feedforward",), refresh=2)
    results = []
    for case in (config, replace(config, reservoir=tmp_path / "scratch")):
        model, topkast = holder(weight, case)
        optimizer = optimizer_of(model, PowerConfig(), LR, 0.0)
        with torch.no_grad():
            model.linear.bias.zero_()
        for step in range(1, 12):
            optimizer.zero_grad()
            F.mse_loss(model.linear(x), target).backward()
            optimizer.step()
            if topkast.due(step):
                topkast.refresh(step, PlainStore(model, optimizer))
        (matrix,) = topkast.matrices.values()
        results.append(matrix.dense())
    assert torch.equal(*results)
    assert list((tmp_path / "scratch").iterdir()) == []
