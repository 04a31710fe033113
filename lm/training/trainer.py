"""The training step and the loop around it.

Losses stay sums and counts until one division by what all ranks counted together, so every token
weighs the same however lanes are spread.
"""

import math
import time
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.lanes import LaneReader
from data.progress import Progress
from data.shards import Shards
from lm.model import CompressiveTransformer, MemoryState
from lm.model.flops import training_flops
from lm.scoring import ScoringConfig, score, tensors
from lm.training import checkpoint
from lm.training.config import RunConfig
from lm.training.dist import World
from lm.training.engine import build_engine
from lm.training.optim import build_optimizer, lr_scale, set_lr
from lm.training.runlog import MetricsLog
from lm.training.throughput import Stopwatch, matmul_rate


class NonFiniteError(ValueError):
    """A loss or gradient is infinite or not a number; the weights have not moved."""


class Trainer:
    """A model, its optimiser, its lanes and their memory, on one rank."""

    def __init__(self, config: RunConfig, shards: Shards, world: World) -> None:
        training = config.training
        if training.lanes % world.size:
            raise ValueError(
                f"training.lanes must be a multiple of the number of ranks, not {training.lanes} "
                f"over {world.size}"
            )
        self.config, self.shards, self.world = config, shards, world
        torch.manual_seed(training.seed)
        self.model = CompressiveTransformer(config.model, shards.vocabulary.size).to(world.device)
        self.optimizer = build_optimizer(self.model, config.optim)
        lanes = training.lanes // world.size
        self.engine = build_engine(self.model, self.optimizer, lanes)
        # The same weights everywhere, other dropout on every rank.
        torch.manual_seed(training.seed + world.rank)
        self.lanes = LaneReader(
            shards.split("train"),
            lanes=training.lanes,
            segment=config.model.segment,
            seed=training.seed,
            order=training.order,
            reset_documents=training.reset_documents,
            first=world.rank * lanes,
            count=lanes,
        )
        self.memory: MemoryState = self.model.empty_memory(lanes)
        self.step = 0

    def train_step(self, steps: int) -> dict[str, float]:
        """Read one segment of every lane and update the weights once.

        Args:
            steps: length of the run, for the learning rate.

        Returns:
            Sums over all ranks: nats, tokens, the auxiliary losses' means; gradient norm and rate.

        Raises:
            NonFiniteError: before the weights move.
        """
        batch = self.lanes.next()
        inputs, targets, scored, reset = tensors(batch, slice(None), self.world.device)
        output = self.engine(inputs, self.memory.reset(reset), targets)
        nats = (output.predictions * scored).sum()
        parts = {"nats": (nats, scored.sum()), **output.auxiliary}
        sums = torch.stack([torch.stack([t.detach(), c]) for t, c in parts.values()])
        # Before the backward pass, because each loss is divided by the count of all ranks.
        sums = self.world.sum(sums.double())
        counts = sums[:, 1].clamp(min=1)
        # DeepSpeed averages gradients over ranks.
        loss = sum(
            total * (self.world.size / count).to(total.dtype)
            for (total, _), count in zip(parts.values(), counts, strict=True)
        )
        assert isinstance(loss, Tensor)
        self.engine.backward(loss)
        norm = self._clip(loss)
        scale = lr_scale(self.config.optim, self.step, steps)
        set_lr(self.optimizer, scale)
        self.engine.step()
        self.memory = output.memory.detach()
        self.step += 1
        result = {"nats": sums[0, 0].item(), "tokens": sums[0, 1].item()}
        for name, (total, count) in zip(list(parts)[1:], sums[1:].tolist(), strict=True):
            result[name] = total / max(count, 1)
        return result | {"grad_norm": norm.item(), "lr": scale * self.config.optim.lr}

    def _clip(self, loss: Tensor) -> Tensor:
        """Bound the gradient's global norm; returns the norm before."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if not (math.isfinite(loss.item()) and math.isfinite(norm.item())):
            raise self._non_finite()
        torch.nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip, norm)
        return norm

    def _non_finite(self) -> NonFiniteError:
        bad = "the loss"
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and not parameter.grad.isfinite().all():
                bad = f"the gradient of {name}"
                break
        return NonFiniteError(
            f"step {self.step + 1}: {bad} is not finite and the weights have not moved; "
            "lower optim.lr or lengthen optim.warmup and continue from the last checkpoint"
        )

    def validate(self) -> float:
        """Bits per byte of the validation split, by the one scorer."""
        lanes = max(8, self.world.size)
        share = lanes // self.world.size
        mine = slice(self.world.rank * share, (self.world.rank + 1) * share)
        return score(
            self.model,
            self.shards.split("validation"),
            ScoringConfig(lanes=share * self.world.size),
            rows=mine,
            limit=self.config.training.validation_segments,
            reduce=self.world.sum,
        ).bits_per_byte

    def save(self, run: Path) -> None:
        """Write a checkpoint."""
        state = {
            "ranks": self.world.size,
            "shards": self.shards.hash,
            "vocabulary": {
                "hash": self.shards.vocabulary.hash,
                "size": self.shards.vocabulary.size,
            },
            "lanes": self._gathered_lanes(),
        }
        progress = checkpoint.Progress(self.step, self.memory, state)
        checkpoint.save(run, self.engine, progress, self.world, self.config.training.keep)

    def restore(self, folder: Path) -> None:
        """Continue from a checkpoint.

        Raises:
            ValueError: it belongs to other shards.
        """
        progress = checkpoint.restore(folder, self.engine, self.memory, self.world)
        if progress.state["shards"] != self.shards.hash:
            raise ValueError(
                f"{folder} was trained on other shards than {self.shards.path}; prepare the same "
                "shards again or give another --run folder"
            )
        self.memory, self.step = progress.memory, progress.step
        lanes, first = self.memory.lanes, self.world.rank * self.memory.lanes
        self.lanes.load_state(
            {
                name: value[first : first + lanes] if isinstance(value, list) else value
                for name, value in progress.state["lanes"].items()
            }
        )

    def _gathered_lanes(self) -> dict[str, Any]:
        """Cursors of all lanes, in lane order."""
        mine = self.lanes.state()
        if self.world.size == 1:
            return dict(mine)
        everyone: list[Any] = [None] * self.world.size
        torch.distributed.all_gather_object(everyone, mine)
        return {
            name: list(chain.from_iterable(state[name] for state in everyone))
            if isinstance(value, list)
            else value
            for name, value in mine.items()
        }


class Loop:
    """Trains to the last step, with records, validation and checkpoints on the way."""

    def __init__(self, trainer: Trainer, run: Path) -> None:
        assert trainer.config.training.steps is not None
        self.trainer, self.run, self.steps = trainer, run, trainer.config.training.steps
        self.log = MetricsLog(run / "metrics.jsonl")
        self.watch = Stopwatch()
        model = trainer.model
        self.flops = training_flops(model.config, model.vocabulary, trainer.memory.lanes).total
        self.peak = matmul_rate(trainer.world.device)
        self.sums = {"nats": 0.0, "tokens": 0.0}

    def train(self) -> None:
        """Run until the last step is done, scored and saved."""
        trainer = self.trainer
        with Progress("train", self.steps, "step", enabled=trainer.world.first) as bar:
            bar.update(trainer.step)
            shown: dict[str, str] = {}
            while trainer.step < self.steps:
                record = self.timed_step()
                if self.due(trainer.config.training.log_every):
                    record |= self.summary()
                    shown["bits/token"] = f"{record['loss'] / math.log(2):.3f}"
                    shown["tok/s"] = f"{record['tokens_per_second']:,.0f}"
                    shown["mfu"] = f"{record['mfu']:.0%}"
                    self.write(record)
                if self.due(trainer.config.training.validate_every):
                    value = trainer.validate()
                    shown["valid"] = f"{value:.3f}"
                    self.write({"step": trainer.step, "validation_bits_per_byte": value})
                if self.due(trainer.config.training.save_every):
                    trainer.save(self.run)
                bar.update(1, **shown)

    def timed_step(self) -> dict[str, float]:
        """One training step, timed and added to the sums since the last record."""
        start = time.perf_counter()
        result = self.trainer.train_step(self.steps)
        self.watch.add(time.perf_counter() - start, int(result["tokens"]))
        for name in self.sums:
            self.sums[name] += result.pop(name)
        return {"step": self.trainer.step, **result}

    def summary(self) -> dict[str, float]:
        """Loss in nats per token and speed since the last record."""
        loss = self.sums["nats"] / self.sums["tokens"]
        self.sums = dict.fromkeys(self.sums, 0.0)
        rate = self.watch.rate()
        # Each rank was measured with its own threads, so the ranks' peak is their number times it.
        mfu = rate * self.flops / (self.peak * self.trainer.world.size)
        seconds = self.watch.total_seconds
        return {"loss": loss, "tokens_per_second": rate, "mfu": mfu, "seconds": seconds}

    def due(self, every: int) -> bool:
        """Whether something is done after this step; everything is after the last."""
        return self.trainer.step % every == 0 or self.trainer.step == self.steps

    def write(self, record: dict[str, float]) -> None:
        """Append to metrics.jsonl."""
        if self.trainer.world.first:
            self.log.write(record)


def measured_steps(config: RunConfig, shards: Shards, world: World, trial: int = 12) -> int:
    """How many steps fit in training.minutes, by trying some with a trainer that is thrown away."""
    assert config.training.minutes is not None
    trainer = Trainer(config, shards, world)
    seconds = []
    for _ in range(trial):
        start = time.perf_counter()
        trainer.train_step(trial)
        seconds.append(time.perf_counter() - start)
    # The first steps warm caches up. The slowest rank decides, so that all agree.
    typical = torch.tensor(sorted(seconds[2:])[len(seconds[2:]) // 2], dtype=torch.float64)
    everyone = torch.zeros(world.size, dtype=torch.float64, device=world.device)
    everyone[world.rank] = typical
    slowest = world.sum(everyone).max().item()
    return max(1, int(config.training.minutes * 60 / slowest))
