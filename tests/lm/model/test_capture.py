"""A step can be captured: it waits for no value, and memory keeps its shapes."""

import pytest
import torch
from torch import Tensor

from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer
from tests.lm.model.cases import SHAPES, VOCABULARY, build, stream

QUICK = (
    "memory equals segment",
    "memory longer",
    "memory shorter",
    "dilated, extra kernel",
    "auto-encoding",
    "most_used, memory shorter",
    "low_pass, memory longer",
    "few sinusoids",
    "rotary",
    "gate gru",
    "attended zeros",
)


def tensors(memory: MemoryState) -> list[Tensor]:
    """Every tensor of a memory."""
    found: list[Tensor] = []
    memory.map(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
    return found


def step(
    model: CompressiveTransformer, tokens: Tensor, memory: MemoryState
) -> tuple[Tensor, MemoryState]:
    """Losses and gradients of a segment, and the memory after it."""
    output = model(tokens, memory, tokens)
    loss = output.predictions.mean()
    for extra in output.auxiliary.values():
        loss = loss + extra.total / extra.elements.clamp(min=1)
    loss.backward()
    return loss.detach(), output.memory.detach()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SHAPES]
)
def test_no_step_waits_for_a_value_or_changes_a_shape(name: str) -> None:
    # Tensors of this device have no values: whoever asks for one is an error.
    with torch.device("meta"):
        model = CompressiveTransformer(SHAPES[name], VOCABULARY).train()
        memory = model.empty_memory(2)
        shapes = [tensor.shape for tensor in tensors(memory)]
        tokens = torch.zeros(2, SHAPES[name].segment, dtype=torch.int64)
        for _ in range(3):
            _, memory = step(model, tokens, memory)
            assert [tensor.shape for tensor in tensors(memory)] == shapes
    assert all(p.grad is not None for p in model.parameters() if p.numel())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["memory equals segment", "memory longer", "few sinusoids", "rotary", "low_pass"]
)
def test_a_captured_step_is_replayed_from_segment_to_segment(name: str) -> None:
    config = {**SHAPES, "low_pass": SHAPES["low_pass, memory longer"]}[name]
    model = build(config).to("cuda").train()
    segments = stream(9, 2, config).to("cuda").split(config.segment, dim=1)
    expected, memory = [], model.empty_memory(2)
    for tokens in segments:
        model.zero_grad()
        loss, memory = step(model, tokens, memory)
        expected.append([loss, *(p.grad for p in model.parameters())])
    tokens, memory = segments[0].clone(), model.empty_memory(2)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(model, tokens, memory)
    torch.cuda.current_stream().wait_stream(side)
    model.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, after = step(model, tokens, memory)
        for old, new in zip(tensors(memory), tensors(after), strict=True):
            old.copy_(new)
    for segment, wanted in zip(segments, expected, strict=True):
        tokens.copy_(segment)
        graph.replay()
        torch.testing.assert_close([loss, *(p.grad for p in model.parameters())], wanted)
    assert int(memory.memory_count.min()) == config.memory
