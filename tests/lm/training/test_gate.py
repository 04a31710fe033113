"""The gate: its rules on gradients of known angles, what it never touches, and that ranks and parts
do not matter."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.shards import Shards
from lm.objectives.readings_config import ReadingsConfig
from lm.runs.gating import GateConfig, Products, Rule, let_in
from lm.runs.run_config import RunConfig
from lm.training import dist
from lm.training.trainer import Trainer
from tests.processes import ends, start, write_config
from tests.runs import saved, with_training

RULES: tuple[Rule, ...] = ("sign", "cosine", "project")
READINGS = ReadingsConfig(local="segment", nats=0.5, default=0.3)


def learnt(rule: Rule, g: Tensor, a: Tensor) -> Tensor:
    own, other = let_in(rule, Products(*(float(x @ y) for x, y in ((g, a), (g, g), (a, a)))))
    return own * g + other * a


@pytest.mark.parametrize("rule", RULES)
def test_rules_on_quadratics(rule: Rule) -> None:
    """Two quadratics |w - x|^2 / 2 and |w - y|^2 / 2 from w = 0: gradients -x and -y."""
    x = torch.tensor([1.0, 0.0], dtype=torch.float64)
    agreeing, against = (torch.tensor([s * 1.0, 1.0], dtype=torch.float64) for s in (1, -1))
    cosine = 1 / math.sqrt(2)
    expected = {
        "sign": (-x - agreeing, -x),
        "cosine": (-x - cosine * agreeing, -x),
        "project": (-x - agreeing, -x - torch.tensor([0.0, 1.0])),
    }[rule]
    for other, found in zip((agreeing, against), expected, strict=True):
        torch.testing.assert_close(learnt(rule, -x, -other), found.double())
    assert torch.equal(learnt(rule, -x, x), -x)
    assert torch.equal(learnt(rule, -x, -x), -2 * x)


def test_what_is_not_finite_is_not_hidden() -> None:
    for rule in RULES:
        assert let_in(rule, Products(math.nan, 1.0, math.nan)) == (1.0, 1.0)
    assert let_in("cosine", Products(0.0, 0.0, 1.0)) == (1.0, 0.0)
    assert let_in("project", Products(0.0, 0.0, 1.0)) == (1.0, 1.0)


@pytest.fixture(scope="module")
def config(run_config: RunConfig) -> RunConfig:
    """Without dropout, and a clip that never acts."""
    model, optim = replace(run_config.model, dropout=0.0), replace(run_config.optim, clip=1e9)
    return with_training(replace(run_config, model=model, optim=optim), readings=READINGS)


def gradients(
    config: RunConfig, shards: Shards, **changes: Any
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of the second step, in which memory holds something."""
    trainer = Trainer(with_training(config, **changes), shards, dist.join())
    found: dict[str, Tensor] = {}
    update = trainer.engine.update

    def noting(finite: bool) -> float | None:
        for name, parameter in trainer.model.named_parameters():
            if parameter.grad is not None:
                found[name] = parameter.grad.detach().clone()
        return update(finite)

    trainer.train_step(12)
    trainer.engine.update = noting  # type: ignore[method-assign]
    return found, trainer.train_step(12)


@pytest.fixture(scope="module")
def parts(config: RunConfig, shards: Shards) -> list[dict[str, Tensor]]:
    """Gradients of the second step of the main losses alone, and of those and the auxiliary ones.

    The first step's rate is that of the warm-up's beginning, so weak that both runs stay together.
    """
    still = replace(config, optim=replace(config.optim, lr=1e-30, floor=1e-30))
    main = replace(READINGS, default=0.0)
    return [gradients(still, shards, readings=each)[0] for each in (main, READINGS)]


@pytest.mark.parametrize("scope", ["model", "layer"])
@pytest.mark.parametrize("rule", RULES)
def test_the_rule_acts_on_what_is_shared(
    config: RunConfig, shards: Shards, parts: list[dict[str, Tensor]], rule: Rule, scope: str
) -> None:
    still = replace(config, optim=replace(config.optim, lr=1e-30, floor=1e-30))
    gate = GateConfig(rule, ("worth",), scope)  # type: ignore[arg-type]
    found, logged = gradients(still, shards, gate=gate)
    main, both = parts
    assert found.keys() == main.keys() == both.keys()

    def group(name: str) -> str:
        if scope == "model" or ".compression." in name:
            return ""
        return name.split(".")[1] if name.startswith("blocks.") else "ends"

    shared = [name for name in main if ".compression." not in name]
    cosines = []
    for number in sorted({group(name) for name in shared}):
        names = [name for name in shared if group(name) == number]
        g = torch.cat([main[name].flatten() for name in names]).double()
        a = torch.cat([(both[name] - main[name]).flatten() for name in names]).double()
        expected = learnt(rule, g, a)
        mine = torch.cat([found[name].flatten() for name in names]).double()
        torch.testing.assert_close(mine, expected, rtol=1e-3, atol=1e-5)
        cosines.append(float(g @ a / g.norm() / a.norm()))
    assert logged["gate_cosine"] == pytest.approx(sum(cosines) / len(cosines), abs=1e-3)
    assert 0 <= logged["gate_passed"] <= 1 + 1e-6
    for name in main.keys() - set(shared):
        torch.testing.assert_close(found[name], main[name], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rule", RULES)
def test_the_reconstruction_loss_goes_on_training_compression(
    config: RunConfig, shards: Shards, rule: Rule
) -> None:
    """Its gradient on all other weights is none, so that a cosine would switch it off."""
    plain, _ = gradients(config, shards)
    found, logged = gradients(config, shards, gate=GateConfig(rule, ("reconstruction",)))
    compressing = [name for name in plain if ".compression." in name]
    assert compressing and all(plain[name].abs().max() > 0 for name in compressing)
    for name, gradient in plain.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-8)
    assert "gate_cosine" not in logged


def test_two_segments_share_compression(config: RunConfig, shards: Shards) -> None:
    """Where the likelihood reaches it through the second segment, the gate acts on it too."""
    _, logged = gradients(config, shards, unroll=2, gate=GateConfig("cosine", ("reconstruction",)))
    assert -1 <= logged["gate_cosine"] <= 1 and logged["gate_passed"] < 1


@pytest.mark.parametrize("changes", [{"micro_batches": 2}, {"activation_checkpointing": True}])
def test_parts_of_an_update_do_not_matter(
    config: RunConfig, shards: Shards, changes: dict[str, Any]
) -> None:
    gate = GateConfig("cosine", ("worth",), "layer")
    one, logged = gradients(config, shards, gate=gate)
    two, again = gradients(config, shards, gate=gate, **changes)
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, rtol=1e-3, atol=1e-6)
    assert logged["gate_cosine"] == pytest.approx(again["gate_cosine"], abs=1e-4)


def test_it_resumes_to_the_bit(config: RunConfig, shards: Shards, tmp_path: Path) -> None:
    gated = with_training(config, gate=GateConfig("project", ("worth",)), precision="bf16")
    whole = Trainer(gated, shards, dist.join())
    whole.train_step(12)
    folder = saved(whole, tmp_path)
    expected = whole.train_step(12)
    assert Trainer(gated, shards, dist.join(), folder).train_step(12) == expected


REFUSED = [
    ({"losses": ("worth",)}, r"losses has no effect with training\.gate\.rule none"),
    ({"scope": "layer"}, r"scope has no effect with training\.gate\.rule none"),
    ({"rule": "sign"}, r"rule sign needs training\.gate\.losses"),
    ({"rule": "sign", "losses": ("nats",)}, r"must name auxiliary losses once each, and not nats"),
    ({"rule": "sign", "losses": ("worth", "worth")}, r"must name auxiliary losses once each"),
]


@pytest.mark.parametrize(("given", "sentence"), REFUSED, ids=str)
def test_gates_without_sense_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        GateConfig(**given)


def test_runs_that_cannot_be_gated_are_refused(config: RunConfig, shards: Shards) -> None:
    gate = GateConfig("sign", ("agreement",))
    with pytest.raises(ValueError, match=r"training\.gate needs training\.zero 0"):
        with_training(config, gate=gate, zero=2)
    other = with_training(config, gate=replace(gate, losses=("teacher",)))
    with pytest.raises(ValueError, match="names teacher, which this run does not have; it has a"):
        Trainer(other, shards, dist.join()).train_step(12)


@pytest.mark.slow
@pytest.mark.dist
@pytest.mark.parametrize("rule", ["cosine", "project"])
def test_two_ranks_are_one_in_float64(config: RunConfig, tmp_path: Path, rule: Rule) -> None:
    training = replace(
        config.training,
        # Not worth: in empty memory both readings are one, and its gradient rounding.
        gate=GateConfig(rule, ("nats_local",), "layer"),
        order="documents",
        reset_documents=True,
        micro_batches=2,
        accumulate=((0, 1), (3, 2)),
    )
    path, seen = write_config(replace(config, training=training), tmp_path), []
    for ranks in (1, 2):
        out = tmp_path / f"{ranks}.json"
        command = [sys.executable, "-m", "tests.float64", str(path), str(out)]
        assert [status for status, _ in ends(start(command, ranks))] == [0] * ranks
        seen.append(json.loads(out.read_text()))
    one, two = seen
    for mine, theirs in zip(one["steps"], two["steps"], strict=True):
        assert mine == pytest.approx(theirs, rel=1e-12)
        assert "gate_cosine" in mine
    assert one["weights"] == pytest.approx(two["weights"], rel=1e-9, abs=1e-12)
