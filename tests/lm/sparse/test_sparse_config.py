"""Settings that cannot be, or would have no effect, are refused in a sentence."""

from typing import Any

import pytest
import torch

from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.sparse.sparse_config import PowerConfig, SparseConfig
from lm.sparse.sparse_linear import SparseLinear
from lm.sparse.topkast import sparsify


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"exploration": 0.1}, "exploration has no effect without sparse.density"),
        ({"density": 0.0}, "must be above 0"),
        ({"density": 0.6, "exploration": 0.5}, "at most 1"),
        ({"density": 0.2, "kinds": ()}, "some kinds"),
        ({"density": 0.2, "kinds": ("gates",), "by_kind": (("attention", 0.1, 0.1),)}, "by_kind"),
        ({"density": 0.2, "by_kind": (("attention", 0.5, 0.6),)}, "at most 1"),
        ({"density": 0.2, "granularity": "2:4"}, "2:4 has sparse.density 0.5"),
        ({"density": 0.2, "block": 16}, "block has no effect"),
        ({"density": 0.2, "refresh": 0}, "refresh must be at least 1"),
        ({"density": 0.2, "penalty": -1.0}, "penalty"),
        ({"density": 0.2, "choice": "random"}, "set sparse.refresh to null"),
        ({"density": 0.2, "refresh": None, "exploration": 0.1}, "no effect without sparse.refresh"),
        ({"density": 0.2, "explored": "random"}, "explored has no effect"),
        ({"density": 0.2, "stop_exploration": 5}, "stop_exploration has no effect"),
        ({"density": 0.2, "exploration": 0.1, "stop_exploration": -1}, "at least 0"),
    ],
)
def test_sparse_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SparseConfig(**given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 0.5}, "at least 1"),
        ({"factor": "plain"}, "factor has no effect"),
        ({"lr": 0.1}, "lr has no effect"),
        ({"alpha": 2.0, "lr": 0.0}, "power.lr must be above 0"),
        ({"alpha": 2.0, "kinds": ("gates", "gates")}, "once each"),
    ],
)
def test_power_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PowerConfig(**given)


def tiny(**changes: Any) -> CompressiveTransformer:
    config = {"layers": 2, "width": 16, "heads": 2, "feedforward": 32, "segment": 8, "memory": 8}
    return CompressiveTransformer(
        ModelConfig(**{**config, "compressed": 4, "rate": 2, **changes}), 11
    )


def test_kinds_choose_their_matrices_with_their_shares() -> None:
    model = tiny(gate="gru")
    config = SparseConfig(
        0.25, 0.25, kinds=("attention", "gates", "compression"), by_kind=(("gates", 0.5, 0.0),)
    )
    matrices = sparsify(model, config, PowerConfig(), 0).matrices
    shares = {
        name.removeprefix("blocks.1."): m.module.values.numel() / m.reservoir.numel()
        for name, m in matrices.items()
        if name.startswith("blocks.1.")
    }
    expected = dict.fromkeys(
        [
            *(f"attention.{n}.values" for n in ("query_key_value", "output", "position_key")),
            "attention.compressed_position_key.values",
            "compression.projection.values",
        ],
        0.5,
    )
    for gate in ("attention_gate", "feedforward_gate"):
        for part in ("sublayer", "stream", "reset_stream"):
            expected[f"{gate}.{part}.values"] = 0.5
    assert shares == expected
    assert matrices["blocks.0.attention_gate.stream.values"].module.explored == 0
    assert not any(isinstance(m, SparseLinear) for m in model.blocks[0].feedforward.modules())


def test_absent_kinds_and_unfitting_matrices_are_refused() -> None:
    for sparse, power, message in (
        (SparseConfig(0.2, kinds=("gates",)), PowerConfig(), "sparse.kinds names gates"),
        (SparseConfig(), PowerConfig(2.0, ("gates",)), "power.kinds names gates"),
        (SparseConfig(0.2, granularity="block", block=32), PowerConfig(), "must divide both sides"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsify(tiny(), sparse, power, 0)
    with pytest.raises(ValueError, match="multiple of 4 inputs"):
        sparsify(
            tiny(width=18, feedforward=18), SparseConfig(0.5, granularity="2:4"), PowerConfig(), 0
        )


def test_a_model_in_sparse_form_computes_with_its_own_matrices() -> None:
    """Every use of a matrix in the model goes through the interface: outputs, memory and the
    gradients of everything else equal those of the dense model with the same matrices."""
    torch.manual_seed(0)
    sparse, dense = tiny(), tiny()
    dense.load_state_dict(sparse.state_dict())
    sparsify(
        sparse,
        SparseConfig(0.3, 0.2, kinds=("attention", "feedforward", "compression")),
        PowerConfig(1.5),
        0,
    )
    with torch.no_grad():
        for name, module in sparse.named_modules():
            if isinstance(module, SparseLinear):
                dense.get_submodule(name).weight.copy_(module.matrix())
    tokens = torch.randint(11, (2, 40))
    results = []
    for model in (sparse, dense):
        memory = model.empty_memory(2)
        for start in range(0, 32, 8):
            output = model(tokens[:, start : start + 8], memory)
            memory = output.memory.detach()
        loss = output.predictions.logsumexp(-1).sum() + output.auxiliary["reconstruction"].total
        loss.backward()
        results.append((output, {n: p.grad for n, p in model.named_parameters()}))
    (ours, ours_grad), (theirs, theirs_grad) = results
    torch.testing.assert_close(ours.predictions, theirs.predictions)
    for mine, other in zip(ours.memory.compressed, theirs.memory.compressed, strict=True):
        torch.testing.assert_close(mine, other)
    for name in ours_grad.keys() & theirs_grad.keys():
        torch.testing.assert_close(ours_grad[name], theirs_grad[name])
    module = sparse.blocks[1].attention.query_key_value
    expected = theirs_grad["blocks.1.attention.query_key_value.weight"].flatten()
    torch.testing.assert_close(module.values.grad, expected[module.index.long()])
    assert set(ours.auxiliary) - set(theirs.auxiliary) == {"penalty"}
