"""Backends of attention against each other where the oracle does not reach."""

from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lm.model.attention import blocked
from lm.model.attention.base import dropped_weights
from lm.model.attention.relative import RelativeAttention
from lm.model.model_config import ModelConfig
from tests.lm.model.cases import TINY, build


@pytest.mark.parametrize("compressed", [3, 4])
@pytest.mark.parametrize(("segment", "far_queries"), [(5, 64), (6, 2), (6, 3)])
def test_blocks_of_lanes_and_queries_read_what_the_shift_reads(
    segment: int, far_queries: int, compressed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Outputs and every gradient, with dropped weights and memory partly empty, where the last
    chunk has fewer lanes than the others.
    """
    config = replace(TINY, attention_dropout=0.4, segment=segment, memory=7, compressed=compressed)
    monkeypatch.setattr(blocked, "FAR_QUERIES", far_queries)
    scores_of_a_lane = config.heads * segment * (config.slots + segment)
    monkeypatch.setattr(blocked, "CHUNK_ELEMENTS", 2 * scores_of_a_lane)
    attention = build(config).layers[0].attention
    torch.manual_seed(1)
    inputs = torch.randn(3, segment, 8, dtype=torch.float64, requires_grad=True)
    slots = torch.randn(3, config.slots, 8, dtype=torch.float64)
    live = torch.arange(config.slots) >= torch.tensor([[0], [4], [10]])

    def output() -> torch.Tensor:
        return attention(inputs, attention.project(slots), live).output_BTD

    results = []
    for backend in ("blocked", "shift"):
        attention.config = replace(config, backend=backend)
        torch.manual_seed(2)
        read = output()
        wanted = [inputs, *attention.parameters()]
        results.append((read, *torch.autograd.grad(read.square().sum(), wanted)))
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)
    attention.eval()
    assert not torch.allclose(results[0][0], output())


def test_dropped_weights_keep_their_mean() -> None:
    factors = dropped_weights(torch.zeros(1, 1, 400, 2), 400, 0.25)
    assert factors is not None
    assert factors.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert factors.mean().item() == pytest.approx(1.0, abs=0.02)


def test_the_fused_backend_drops_weights_too() -> None:
    """The average over many draws is what is read without dropout."""
    config = replace(TINY, attention_dropout=0.3, backend="fused")
    attention = build(config).layers[0].attention
    torch.manual_seed(1)
    inputs = torch.randn(1, 4, 8, dtype=torch.float64)
    slots = attention.project(torch.randn(1, config.slots, 8, dtype=torch.float64))
    live = torch.ones(1, config.slots, dtype=torch.bool)
    draws = torch.stack([attention(inputs, slots, live).output_BTD for _ in range(600)])
    assert draws.std(dim=0).min() > 0
    exact = attention.eval()(inputs, slots, live).output_BTD
    error = (draws.mean(dim=0) - exact).abs() / (draws.std(dim=0) / 600**0.5)
    assert error.max() < 5


def on_meta(config: ModelConfig, training: bool = True) -> str:
    with torch.device("meta"):
        return RelativeAttention(config).train(training).backend()


def test_backends_by_device_and_need() -> None:
    few = replace(TINY, sinusoids=4)
    assert RelativeAttention(few).backend() == "blocked"
    assert on_meta(few) == "fused"
    assert on_meta(replace(few, width=512, heads=1, sinusoids=None)) == "shift"
    assert on_meta(replace(few, dropout=0.1)) == "shift"
    assert on_meta(replace(few, dropout=0.1), training=False) == "fused"
    assert on_meta(replace(few, compression="most_used", reconstruction="none")) == "shift"
    for backend in ("shift", "blocked", "fused"):
        assert RelativeAttention(replace(few, backend=backend)).backend() == backend
    assert on_meta(replace(few, backend="shift")) == "shift"
    assert on_meta(replace(few, backend="blocked")) == "shift"


@pytest.mark.gpu
def test_the_blocked_backend_is_refused_on_a_gpu() -> None:
    attention = RelativeAttention(replace(TINY, backend="blocked")).to("cuda")
    with pytest.raises(ValueError, match="blocked is for CPUs; set it to auto"):
        attention.backend()


class Joins(TorchDispatchMode):
    """Notes the size of everything that is joined."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket == torch.ops.aten.cat:
            self.sizes.append(result.numel())
        return result


@pytest.mark.parametrize(("positions", "joined"), [("relative", False), ("rotary", True)])
def test_memory_and_segment_are_not_joined(positions: str, joined: bool) -> None:
    """On a CPU a layer reads its memories where they are; a fused kernel wants one tensor."""
    config = replace(TINY, positions=positions, compressed=2)
    model, memory = build(config), build(config).empty_memory(64)
    tokens = torch.zeros(64, config.segment, dtype=torch.int64)
    memory = model(tokens, memory).memory
    with Joins() as joins:
        model(tokens, memory, tokens, losses=True)
    smallest = 64 * config.compressed * config.width
    assert (max(joins.sizes) >= smallest) == joined
