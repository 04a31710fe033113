"""Compiled layers train as others do, and a machine without a compiler trains without."""

from dataclasses import replace

import pytest
import torch

from lm.training import compiling, dist
from lm.training.trainer import Trainer


def losses(config, shards, steps=3, **changes):
    model = replace(config.model, dropout=0.0)
    training = replace(config.training, **changes)
    trainer = Trainer(replace(config, model=model, training=training), shards, dist.join())
    results = [trainer.train_step(steps) for _ in range(steps)]
    return [result[name] for result in results for name in ("nats", "reconstruction")]


@pytest.fixture(autouse=True)
def _forget_graphs():
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.parametrize("changes", [{}, {"activation_checkpointing": True}])
def test_compiled_layers_train_as_others_do(run_config, shards, changes, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    compiled = losses(run_config, shards, compile=True, **changes)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    assert compiled == pytest.approx(losses(run_config, shards), rel=1e-5)
    assert "compile" not in capsys.readouterr().err


@pytest.mark.slow
def test_the_usual_compiler_trains_as_no_compiler_does(run_config, shards):
    reason = compiling.missing(torch.device("cpu"))
    if reason is not None:
        pytest.skip(reason)
    compiled = losses(run_config, shards, compile=True)
    assert compiled == pytest.approx(losses(run_config, shards), rel=1e-4)


def test_without_a_compiler_a_sentence_is_said(run_config, shards, monkeypatch, capsys):
    monkeypatch.setattr(compiling, "BACKEND", "a compiler that is not here")
    assert losses(run_config, shards, steps=1, compile=True) == losses(run_config, shards, steps=1)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "compile" in line]
    assert line.startswith("warning: training.compile has no effect, because nothing can be compil")


@pytest.mark.parametrize(("tiles", "precision"), [(True, "bf16"), (False, "float32")])
def test_bf16_is_taken_where_the_machine_has_instructions_for_it(
    run_config, monkeypatch, tiles, precision
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(compiling, "multiplies_bfloat16", lambda: tiles)
    wanted = replace(run_config, training=replace(run_config.training, precision="auto"))
    assert compiling.settled(wanted).training.precision == precision
    for given in ("float32", "bf16"):
        training = replace(run_config.training, precision=given)
        assert compiling.settled(replace(wanted, training=training)).training.precision == given


def test_weights_that_are_gathered_in_hooks_are_not_compiled(run_config):
    training = replace(run_config.training, compile=True, zero=3)
    with pytest.raises(ValueError, match="zero 0 to 2"):
        replace(run_config, training=training)
