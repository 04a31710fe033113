"""The first updates of every ZeRO stage and precision, against plain torch."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from data.shards import Shards
from lm.objectives.objective import Unroll
from lm.objectives.registry import chosen
from lm.runs.run_config import RunConfig
from lm.training import dist
from lm.training.optim import build_optimizer
from lm.training.trainer import Trainer
from tests.runs import with_training

FLOAT32_STAGES = [(0, False), (1, False), (2, False), (2, True), (3, False), (3, True)]


pytestmark = pytest.mark.usefixtures("partition_everything")


def smooth(config: RunConfig, **changes: Any) -> RunConfig:
    """Other settings of training, without dropout, whose random numbers bf16 draws otherwise, and
    with an eps far above the rounding of gradients, which Adam would blow up to whole updates.
    """
    model = replace(config.model, dropout=0.0, filters=4)
    optim = replace(config.optim, eps=1e-4)
    return with_training(replace(config, model=model, optim=optim), **changes)


class PlainTorch:
    """Updates by autograd and torch's AdamW: float32 masters, a copy of them that computes."""

    def __init__(self, config: RunConfig, trainer: Trainer, working: torch.dtype) -> None:
        self.config, self.working = config, working
        self.masters = copy.deepcopy(trainer.model)
        self.module = Unroll(copy.deepcopy(self.masters).to(working), chosen(["likelihood"]))
        self.optimizer = build_optimizer(self.masters, config.optim)
        self.memory = self.module.model.empty_memory(config.training.lanes)

    def update(self, trainer: Trainer, lr: float) -> tuple[float, float]:
        """Read what the trainer's reader gives next; returns mean nats and gradient norm."""
        training = self.config.training
        count = [n for first, n in training.accumulate if first <= trainer.step][-1]
        reads = [[trainer.lanes.next() for _ in range(training.unroll)] for _ in range(count)]
        tokens = sum(scored for read in reads for _, scored in read)
        nats = 0.0
        for read in reads:
            segments = [segment for segment, _ in read]
            losses, _, self.memory = self.module(segments, self.memory)
            total, elements, _ = losses["reconstruction"]
            weight = 1 / (count * elements.clamp(min=1))
            (losses["nats"][0] * (1 / tokens) + total * weight.to(total.dtype)).backward()
            nats += losses["nats"][0].item()
        for master, worker in zip(
            self.masters.parameters(), self.module.model.parameters(), strict=True
        ):
            master.grad = None if worker.grad is None else worker.grad.float()
            worker.grad = None
        norm = nn.utils.clip_grad_norm_(self.masters.parameters(), self.config.optim.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.module.model.load_state_dict(self.masters.state_dict())
        return nats / tokens, norm.item()


def assert_updates_agree(config: RunConfig, shards: Shards, world: dist.World, tight: bool) -> None:
    """Losses, norms and weights of four updates; bf16 rounds gradients in its own order."""
    reader_config = smooth(config, zero=0, offload=False, precision="float32")
    reader = Trainer(reader_config, shards, world)
    working = torch.float32 if config.training.precision == "float32" else torch.bfloat16
    plain = PlainTorch(config, reader, working)
    trainer = Trainer(config, shards, world)
    start = {name: p.detach().clone() for name, p in plain.masters.named_parameters()}
    for step in range(4):
        reader.step = step
        result = trainer.train_step(12)
        nats, norm = plain.update(reader, result["lr"])
        assert result["nats"] / result["tokens"] == pytest.approx(nats, rel=1e-5 if tight else 1e-3)
        assert result["grad_norm"] == pytest.approx(norm, rel=1e-4 if tight else 2e-2)
    weights = dict(trainer.engine.weights())
    wrong = [weights[name] - p.detach() for name, p in plain.masters.named_parameters()]
    moved = [weight - start[name] for name, weight in weights.items()]
    error = nn.utils.get_total_norm(wrong) / nn.utils.get_total_norm(moved)
    assert error < (1e-5 if tight else 1e-3)


@pytest.mark.parametrize(("zero", "offload"), FLOAT32_STAGES)
def test_float32_updates_equal_plain_torch(
    run_config: RunConfig, shards: Shards, world: dist.World, zero: int, offload: bool
) -> None:
    """Segments accumulate, back-propagation spans two (below 3), lanes are read in two parts."""
    config = smooth(
        run_config,
        zero=zero,
        offload=offload,
        accumulate=((0, 1), (2, 3)),
        unroll=1 if zero == 3 else 2,
        micro_batches=2,
        activation_checkpointing=zero in (0, 3),
    )
    assert_updates_agree(config, shards, world, tight=True)


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_bf16_updates_equal_plain_torch(
    run_config: RunConfig, shards: Shards, world: dist.World, zero: int
) -> None:
    config = smooth(run_config, zero=zero, precision="bf16")
    assert_updates_agree(config, shards, world, tight=False)
