"""Gates begin close to the identity (their formulas are compared with the oracle)."""

import pytest
import torch

from lm.model.gates import GATES
from lm.model.model_config import GateName

CARRIED = {"output": 0.27, "highway": 0.27, "sigmoid_tanh": 0.27, "gru": 0.12}
"""How much a gate opens when its matrices contribute nothing: sigmoid(-1), or sigmoid(-2)."""


@pytest.mark.parametrize(("name", "opening"), CARRIED.items())
def test_bias_keeps_the_gate_nearly_closed(name: GateName, opening: float) -> None:
    gate = GATES[name](4)
    for parameter in gate.parameters():
        if parameter.ndim == 2:
            torch.nn.init.zeros_(parameter)
    x, y = torch.randn(2, 3, 4), torch.ones(2, 3, 4)
    expected = {
        "output": x + opening * y,
        "highway": (1 - opening) * x + opening * y,
        "sigmoid_tanh": x,
        "gru": (1 - opening) * x,
    }
    torch.testing.assert_close(gate(x, y), expected[name], rtol=0, atol=0.02)
