"""Training steps in one process: arithmetic, resuming, refusals."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from data.shards import Shards
from lm.model.memory import MemoryState
from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import RunConfig, changed, identity
from lm.training import dist
from lm.training.gradients import NonFiniteError
from lm.training.trainer import Trainer


def memory_tensors(memory: MemoryState) -> list[torch.Tensor]:
    return [*memory.memory, *memory.compressed, memory.memory_count, memory.compressed_count]


def test_a_step_equals_plain_torch(
    run_config: RunConfig, shards: Shards, world: dist.World
) -> None:
    """Several steps under DeepSpeed against autograd and torch's AdamW by hand."""
    config = replace(run_config, model=replace(run_config.model, dropout=0.0))
    ours, plain = Trainer(config, shards, world), Trainer(config, shards, world)
    for _ in range(6):
        result = ours.train_step(12)
        segment, _ = plain.lanes.next()
        plain.memory = plain.memory.reset(segment.reset_B)
        output = plain.model(segment.inputs_BT, plain.memory)
        nats = F.cross_entropy(output.predictions.flatten(0, 1), segment.targets_BT.flatten())
        part = output.auxiliary["reconstruction"]
        (nats + part.total / part.elements.clamp(min=1)).backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.model.parameters(), config.optim.clip)
        for group in plain.engine.optimizer.param_groups:
            group["lr"] = result["lr"]
        plain.engine.optimizer.step()
        plain.engine.optimizer.zero_grad()
        plain.memory = output.memory.detach()
        assert result["nats"] / result["tokens"] == pytest.approx(nats.item(), rel=1e-5)
        assert result["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for mine, theirs in zip(ours.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def poison(trainer: Trainer, name: str) -> RemovableHandle:
    """Make the gradient of a parameter NaN."""
    weight = dict(trainer.model.named_parameters())[name]
    return weight.register_hook(lambda gradient: gradient * float("nan"))


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_non_finite_values_stop_before_the_weights_move(
    run_config: RunConfig, shards: Shards, world: dist.World, zero: int
) -> None:
    training = replace(run_config.training, zero=zero)  # type: ignore[arg-type]
    trainer = Trainer(replace(run_config, training=training), shards, world)
    trainer.train_step(12)
    before = trainer.snapshot().files
    handle = poison(trainer, "blocks.1.feedforward.inner.weight")
    with pytest.raises(NonFiniteError, match=r"step 2: .*blocks\.1\.feedforward\.inner\.weight"):
        trainer.train_step(12)
    handle.remove()
    for name in ("model.safetensors", "optimizer-0.safetensors"):
        for key, tensor in trainer.snapshot().files[name].items():
            assert torch.equal(tensor, before[name][key]), key


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_non_finite_steps_are_left_out_and_counted(
    run_config: RunConfig, shards: Shards, world: dist.World, zero: int
) -> None:
    """Weights, optimiser and memory stay; the next step goes on."""
    training = replace(run_config.training, zero=zero, non_finite="skip")  # type: ignore[arg-type]
    trainer = Trainer(replace(run_config, training=training), shards, world)
    trainer.train_step(12)
    before = trainer.snapshot()
    handle = poison(trainer, "blocks.0.attention.output.weight")
    assert trainer.train_step(12) == {"nats": 0.0, "tokens": 0.0, "skipped": 1}
    handle.remove()
    after = trainer.snapshot()
    assert (after.step, after.state["skipped"]) == (2, 1)
    for name, tensors in before.files.items():
        for key, tensor in tensors.items():
            assert key.startswith("rng") or torch.equal(tensor, after.files[name][key]), key
    assert math.isfinite(trainer.train_step(12)["nats"])


FIXED = [
    ("model", {"width": 32}),
    ("model", {"compression": "mean", "reconstruction": "none"}),
    ("model", {"memory": 16}),
    ("model", {"segment": 16}),
    ("training", {"lanes": 8}),
    ("training", {"order": "documents"}),
    ("training", {"seed": 1}),
    ("optim", {"name": "muon", "muon_lr": 1e-3}),
    ("power", {"alpha": 2.0}),
    ("sparse", {"density": 0.5}),
]
FREE = [
    ("model", {"dropout": 0.3, "attention_dropout": 0.1}),
    ("training", {"steps": 20}),
    ("training", {"steps": None, "minutes": 1.0}),
    ("training", {"accumulate": ((0, 2),), "unroll": 2, "micro_batches": 2}),
    ("training", {"precision": "bf16", "zero": 2, "offload": True, "non_finite": "skip"}),
    ("training", {"log_every": 7, "save_every": 7, "validate_every": 7, "keep": 1}),
    ("optim", {"lr": 1e-4, "floor": 0.0, "warmup": 9, "decay": 30, "clip": 1.0}),
    ("optim", {"betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.1}),
    ("report", {"sample_every": 3}),
    ("model", {"backend": "shift"}),
]


def other(config: RunConfig, section: str, changes: dict[str, Any]) -> RunConfig:
    return replace(config, **{section: replace(getattr(config, section), **changes)})


@pytest.mark.parametrize(("section", "changes"), FIXED, ids=str)
def test_a_run_of_another_kind_is_not_continued(
    run_config: RunConfig, section: str, changes: dict[str, Any]
) -> None:
    wanted = other(run_config, section, changes)
    old = getattr(getattr(run_config, section), next(iter(changes)))
    sentence = rf"runs/x holds a run with {section}\.{next(iter(changes))} {old}, not"
    with pytest.raises(ValueError, match=sentence):
        changed(wanted, run_config, "runs/x")
    assert identity(wanted) != identity(run_config)


@pytest.mark.parametrize(("section", "changes"), FREE, ids=str)
def test_what_does_not_make_a_run_another_may_change(
    run_config: RunConfig, section: str, changes: dict[str, Any]
) -> None:
    wanted, before = other(run_config, section, changes), getattr(run_config, section)
    assert changed(wanted, run_config, "runs/x") == {
        f"{section}.{name}": (value, getattr(before, name)) for name, value in changes.items()
    }
    assert identity(wanted) == identity(run_config)


def test_the_blocked_backend_is_not_compiled(run_config: RunConfig) -> None:
    blocked = other(run_config, "model", {"backend": "blocked"})
    with pytest.raises(ValueError, match=r"cannot compile model\.backend blocked"):
        other(blocked, "training", {"compile": True})


def test_lanes_must_fit_the_ranks(run_config: RunConfig, shards: Shards) -> None:
    world = dist.World(0, 3, torch.device("cpu"))
    with pytest.raises(ValueError, match="multiple of the number of ranks"):
        Trainer(run_config, shards, world)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_each_layers_reconstruction_is_watched(
    run_config: RunConfig, shards: Shards, world: dist.World, zero: int
) -> None:
    """The layers' losses are those of the whole, and the norms are of the loss's own gradient."""
    model = replace(run_config.model, dropout=0.0)
    training = replace(run_config.training, zero=zero, micro_batches=2)  # type: ignore[arg-type]
    config = replace(run_config, model=model, training=training)
    ours, plain = Trainer(config, shards, world), Trainer(config, shards, world)
    for _ in range(2):
        assert not any("/" in name for name in ours.train_step(12))
        plain.train_step(12)
    weights = checkpointed_model(plain)
    watched: list[Any] = []
    result = ours.train_step(12, lambda *seen: watched.extend(seen))
    segment, _ = plain.lanes.next()
    assert torch.equal(watched[0].inputs_BT, segment.inputs_BT)
    output = weights(segment.inputs_BT, plain.memory)
    total, elements = output.by_layer["reconstruction"]
    assert torch.equal(total.sum(), output.auxiliary["reconstruction"].total)
    squares, power = output.by_layer["reconstruction_relative"]
    auxiliary = output.auxiliary["reconstruction"]
    (auxiliary.total / auxiliary.elements).backward()
    for layer, block in enumerate(weights.layers):
        mean = (total[layer] / elements[layer]).item()
        assert result[f"reconstruction/{layer}"] == pytest.approx(mean, rel=1e-5)
        share = (squares[layer] / power[layer]).item()
        assert result[f"reconstruction_relative/{layer}"] == pytest.approx(share, rel=1e-5)
        gradients = [p.grad for p in block.compression.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        assert result[f"compression_grad_norm/{layer}"] == pytest.approx(norm, rel=1e-4)


def checkpointed_model(trainer: Trainer) -> CompressiveTransformer:
    """A model of its own with the trainer's weights, whatever the stage."""
    model = CompressiveTransformer(trainer.config.model, trainer.model.vocabulary)
    weights = trainer.snapshot().files["model.safetensors"]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
    return model


@pytest.mark.bad_input("lm.train")
@pytest.mark.parametrize(
    ("section", "name", "value", "sentence"),
    [
        ("training", "lanes", 10**9, r"^reading 1,000,000,000 lanes .* needs at least "),
        ("training", "unroll", 10**12, r"^back-propagation over .* segments \(training.unroll\) "),
        ("model", "segment", 10**12, r"^reading .* segment 1,000,000,000,000, .* needs at least "),
        ("model", "memory", 10**12, r"^reading .* memory 1,000,000,000,000 .* needs at least "),
        ("model", "compressed", 10**12, r"^reading .* compressed 1,000,000,000,000 needs "),
        ("model", "layers", 10**9, r"^a model of 1,000,000,000 layers "),
        ("model", "rate", 10**12, r"^a model of .*rate "),
    ],
)
def test_sizes_that_no_machine_holds_are_refused(
    run_config: RunConfig,
    shards: Shards,
    world: dist.World,
    section: str,
    name: str,
    value: int,
    sentence: str,
) -> None:
    part = replace(getattr(run_config, section), **{name: value})
    with pytest.raises(ValueError, match=sentence):
        Trainer(replace(run_config, **{section: part}), shards, world)
