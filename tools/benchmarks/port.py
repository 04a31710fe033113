"""Quality of compressive-transformer-pytorch: trained and scored as the runs of an experiment are.

It reads the same segments in the same order with the same optimiser and learning rates, and the one
scorer reads the same bytes. It cannot mask empty memory and so reads its beginning without.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.common.files import write_json
from data.lanes import LaneReader
from data.shards import Shards, open_shards
from lm.feeding import tensors
from lm.model import CompressiveTransformer, ModelConfig
from lm.model.transformer import SegmentOutput
from lm.scoring import Scorer, ScoringConfig
from lm.training.config import RunConfig
from lm.training.optim import build_optimizer, lr_scale, set_lr
from tools import others
from tools.experiments import RESULT, Experiment

NAME = "lucidrains"


def main(experiment: Path, out: Path, shards: Path | None = None, threads: int = 1) -> None:
    """Train compressive-transformer-pytorch as the first variant of an experiment, for its table.

    Args:
        experiment: the experiment's YAML file.
        out: the experiment's folder; results go to OUT/lucidrains/seed-N.
        shards: the shards, if they are not where the file says.
        threads: threads to compute with.
    """
    torch.set_num_threads(threads)
    others.use()
    plan = Experiment.read(experiment)
    first = next(iter(plan.variants))
    for name, seed, config in plan.configs(shards):
        file = out / NAME / f"seed-{seed}" / RESULT
        if name == first and not file.is_file():
            result = train(config, open_shards(config.data.shards))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, result)
            print(f"{NAME}, seed {seed}: {result['bits_per_byte']:.4f} bits per byte", flush=True)


def train(config: RunConfig, shards: Shards) -> dict[str, Any]:
    """Train with the settings of a run and score the validation split as its last step does."""
    training, steps = config.training, config.training.steps
    assert steps is not None
    assert training.unroll == 1, "it ends back-propagation at each segment"
    port = Port(config.model, shards.vocabulary.size, training.seed)
    optimizer = build_optimizer(port, config.optim)
    segment, device = config.model.segment, torch.device("cpu")
    reader = LaneReader(
        shards.split("train"), lanes=training.lanes, segment=segment, seed=training.seed
    )
    memory: PortMemory = PortMemory()
    start = time.perf_counter()
    for step in range(steps):
        set_lr(optimizer, lr_scale(config.optim, step, steps))
        inputs, targets, scored, _ = tensors(reader.next(), slice(None), device)
        logits, after, auxiliary = port.read(inputs, memory.value)
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        loss = (nats * scored.flatten()).sum() / scored.sum()
        if auxiliary is not None:
            loss = loss + auxiliary
        loss.backward()
        nn.utils.clip_grad_norm_(port.parameters(), config.optim.clip)
        optimizer.step()
        optimizer.zero_grad()
        memory = PortMemory(after)
    seconds = time.perf_counter() - start
    model, split = cast(CompressiveTransformer, port), shards.split("validation")
    scorer = Scorer(model, split, ScoringConfig(lanes=8), keep_keys=False)
    for _ in range(min(training.validation_segments or len(scorer), len(scorer))):
        scorer.advance()
    return {
        "bits_per_byte": scorer.result().bits_per_byte,
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in port.parameters()),
        "tokens_per_second": steps * training.lanes * segment / seconds,
    }


@dataclass(frozen=True)
class PortMemory:
    """Memory of the port, with what the scorer asks of a memory."""

    value: Any = None

    def reset(self, reset_B: Tensor) -> "PortMemory":
        """The port cannot forget single lanes, so all must begin together."""
        assert self.value is None or not bool(reset_B.any())
        return self


class Port(nn.Module):
    """The port, with what the scorer asks of a model."""

    def __init__(self, config: ModelConfig, vocabulary: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.config, self.vocabulary = config, vocabulary
        self.net, self.read = others.lucidrains(config, vocabulary)
        self.embedding = self.net.token_emb

    def empty_memory(self, _: int) -> PortMemory:
        """Nothing."""
        return PortMemory()

    def forward(self, tokens_BT: Tensor, memory: PortMemory, targets_BT: Tensor) -> SegmentOutput:
        """Negative log-likelihoods of the targets, and memory."""
        logits, after, _ = self.read(tokens_BT, memory.value)
        nats = F.cross_entropy(logits.transpose(1, 2), targets_BT, reduction="none")
        return SegmentOutput(nats, cast(Any, PortMemory(after)))
