"""Schedules, parameter groups and optimisers."""

import math
from itertools import pairwise

import pytest
import torch

from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import OptimConfig
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.sparse.topkast import kind_of, sparsify
from lm.training.optim import (
    QUINTIC,
    build_optimizer,
    lr_scale,
    multiplies_bfloat16,
    orthogonal,
    set_lr,
)

SMALL = ModelConfig(
    layers=1, width=8, heads=2, feedforward=16, segment=4, memory=4, compressed=2, rate=2
)


def test_warm_up_rises_in_a_line_and_the_cosine_falls_to_the_floor() -> None:
    config = OptimConfig(lr=1e-3, floor=1e-5, warmup=10)
    rates = [config.lr * lr_scale(config, step, 110) for step in range(111)]
    assert rates[9] == pytest.approx(1e-3) and max(rates) == pytest.approx(1e-3)
    steps = [b - a for a, b in pairwise(rates[:10])]
    assert steps == pytest.approx([(1e-3 - 1e-5) / 10] * 9)
    assert rates[60] == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert rates[110] == pytest.approx(1e-5)


def test_a_decay_shorter_than_the_run_ends_at_the_floor() -> None:
    config = OptimConfig(lr=1e-3, floor=1e-4, warmup=0, decay=20)
    assert [lr_scale(config, step, 100) for step in (20, 50, 99)] == pytest.approx([0.1] * 3)


def test_wsd_rises_stays_and_falls_in_a_line() -> None:
    config = OptimConfig(lr=1e-3, floor=1e-4, warmup=10, schedule="wsd", decay=20)
    rates = [lr_scale(config, step, 100) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 + 0.9 * (step + 1) / 10 for step in range(10)])
    assert rates[10:81] == [1.0] * 71
    assert rates[80:] == pytest.approx([0.1 + 0.9 * (100 - step) / 20 for step in range(80, 101)])
    longer = [lr_scale(config, step, 140) for step in range(81)]
    assert longer == rates[:81], "the end is not known before the decay"
    fifth = OptimConfig(lr=1e-3, floor=1e-4, warmup=10, schedule="wsd")
    assert [lr_scale(fifth, step, 100) for step in range(101)] == rates
    short = [lr_scale(config, step, 20) for step in range(10, 20)]
    assert short == pytest.approx([0.1 + 0.9 * (20 - step) / 10 for step in range(10, 20)])


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_vectors_do_not_decay(name: str) -> None:
    model = CompressiveTransformer(SMALL, 11)
    muon = {"name": "muon", "muon_lr": 0.02} if name == "muon" else {}
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.1, **muon))  # type: ignore[arg-type]
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    for group in optimizer.param_groups:
        vectors = [p.ndim < 2 or p.shape[0] == SMALL.heads for p in group["params"]]
        assert all(vectors) if group["weight_decay"] == 0 else not any(vectors)


def test_adamw_moves_as_the_textbook_says() -> None:
    model = CompressiveTransformer(SMALL, 11)
    optimizer = build_optimizer(model, OptimConfig(lr=1e-2, betas=(0.9, 0.99), weight_decay=0.1))
    weight = model.layers[0].attention.output.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    optimizer.step()
    torch.testing.assert_close(weight.detach(), before * (1 - 1e-3) - 1e-2)


def test_muon_moves_hidden_matrices_by_nearly_orthogonal_steps() -> None:
    model = CompressiveTransformer(SMALL, 11)
    optimizer = build_optimizer(model, OptimConfig(name="muon", muon_lr=0.02))
    weight = model.layers[0].attention.output.weight
    before = weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    singular = torch.linalg.svdvals((before - weight.detach()) / 0.02)
    assert singular.min() > 0.4 and singular.max() < 1.4


@pytest.mark.parametrize("tiles", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(48, 48), (96, 32), (32, 80)])
def test_orthogonal_steps_are_those_of_the_iteration_in_float64(
    shape: tuple[int, int], tiles: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lm.training.optim.multiplies_bfloat16", lambda: tiles)
    matrix = torch.randn(shape[0], 6) @ torch.randn(6, shape[1]) + 0.1 * torch.randn(shape)
    naive = matrix.double() / matrix.double().norm()
    for _ in range(5):
        left = naive @ naive.mT
        naive = QUINTIC[0] * naive + (QUINTIC[1] * left + QUINTIC[2] * left @ left) @ naive
    error = (orthogonal(matrix).double() - naive).norm() / naive.norm()
    assert error < (0.1 if tiles else 1e-4)
    assert (error > 1e-4) == tiles


@pytest.mark.parametrize(
    ("has", "fast"),
    [
        ({"amx_bf16": True}, True),
        ({"avx512_bf16": True}, True),
        ({"avx512_f": True}, False),
        ({}, False),
    ],
)
def test_vectors_and_tiles_of_bfloat16_both_count(
    has: dict[str, bool], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = {"amx_bf16": False, "avx512_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: none | has, raising=False)
    assert multiplies_bfloat16.__wrapped__() is fast


@pytest.mark.parametrize("sparse", [SparseConfig(), SparseConfig(0.5)], ids=["dense", "sparse"])
def test_powers_have_a_learning_rate_of_their_own(sparse: SparseConfig) -> None:
    moved = []
    for lr in (None, 0.01):
        torch.manual_seed(0)
        model = CompressiveTransformer(SMALL, 11)
        sparsify(model, sparse, PowerConfig(2.0, lr=lr), 0)
        optimizer = build_optimizer(model, OptimConfig(lr=0.001))
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        set_lr(optimizer, 0.5)
        optimizer.step()
        moved.append({name: p.detach() - before[name] for name, p in model.named_parameters()})
    for name, step in moved[0].items():
        matrix = kind_of(name) in PowerConfig().kinds and not name.endswith("bias")
        torch.testing.assert_close(moved[1][name], step * 10 if matrix else step)
        assert step.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "muon"}, "muon_lr"),
        ({"muon_lr": 0.1}, "muon_lr"),
        ({"lr": 0.0}, "lr"),
        ({"floor": 1.0}, "floor"),
        ({"clip": 0.0}, "clip"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"decay": 0}, "decay"),
    ],
)
def test_values_out_of_range_are_refused(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OptimConfig(**change)  # type: ignore[arg-type]
