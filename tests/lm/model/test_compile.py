"""A layer is one graph without breaks, the same for all layers and segments."""

from dataclasses import replace

import pytest
import torch

from tests.lm.model.cases import SHAPES, build, run, stream

QUICK = ("memory longer", "few sinusoids", "rotary, most_used")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in SHAPES]
)
def test_a_layer_is_one_graph(name):
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    backend = "fused" if name.startswith("few sinusoids") else "auto"
    config = replace(SHAPES[name], layers=3, backend=backend)
    model = build(config).train()
    tokens = stream(4, 2, config)
    with torch.no_grad():
        expected, _ = run(model, tokens)
    for block in model.layers:
        # The first break is an error.
        block.compile(backend="eager", fullgraph=True, dynamic=False)
    logits, _ = run(model, tokens)
    torch.testing.assert_close(logits, expected)
    kinds = 1 if config.memory_layers is None else 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == kinds
