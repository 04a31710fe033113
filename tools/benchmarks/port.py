"""Quality of compressive-transformer-pytorch: trained and scored as the runs of an experiment are.

It reads the same segments in the same order with the same optimiser and learning rates, and the one
scorer reads the same bytes. It cannot mask empty memory and so reads its beginning without.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.integrity import write_sealed
from data.common.schema import Size
from data.shards import Shards, open_shards
from data.tokenizers.registry import Tokenizer
from lm.inference.inference_config import ScoringConfig
from lm.inference.predictor import Predictor
from lm.model.model_config import ModelConfig
from lm.runs.run_config import RunConfig
from lm.scoring import Scorer
from lm.training.optim import build_optimizer, lr_scale, set_lr
from tools.benchmarks import others
from tools.benchmarks.building import Step, read_batches
from tools.experiment_table import RESULT
from tools.experiments import Experiment

NAME = "lucidrains"


def main(experiment: Path, out: Path, shards: Path | None = None, threads: Size = 1) -> None:
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
    for run in plan.runs(out, shards):
        config, seed = run.config, run.config.training.seed
        file = out / NAME / f"seed-{seed}" / RESULT
        if run.start.run.parent.name == first and not file.is_file():
            result = train(config, open_shards(config.data.shards))
            file.parent.mkdir(parents=True, exist_ok=True)
            write_sealed(file, result)
            print(f"{NAME}, seed {seed}: {result['bits_per_byte']:.4f} bits per byte", flush=True)


def train(config: RunConfig, shards: Shards) -> dict[str, Any]:
    """Train with the settings of a run and score the validation split as its last step does."""
    training, steps = config.training, config.training.steps
    assert steps is not None
    assert training.unroll == 1, "it ends back-propagation at each segment"
    port = Port(config.model, shards.vocabulary, training.seed)
    optimizer = build_optimizer(port.net, config.optim)
    losses, batches = others.losses_of(port.forward), read_batches(config, shards)
    step = Step(port.net, losses, batches, optimizer, config.optim.clip)
    start = time.perf_counter()
    for number in range(steps):
        set_lr(optimizer, lr_scale(config.optim, number, steps))
        step()
    seconds = time.perf_counter() - start
    scorer = Scorer(port, shards.split("validation"), ScoringConfig(lanes=8))
    for _ in range(min(training.validation_segments or len(scorer), len(scorer))):
        scorer.advance()
    return {
        "bits_per_byte": scorer.result().bits_per_byte,
        "steps": steps,
        "parameters": sum(parameter.numel() for parameter in port.net.parameters()),
        "tokens_per_second": steps * training.lanes * port.segment / seconds,
    }


@dataclass(frozen=True)
class PortState:
    """Memory of the port, as a predictor's state."""

    lanes: int
    value: Any = None

    def reset(self, reset_B: Tensor) -> "PortState":
        """The port cannot forget single lanes, so all must begin together."""
        assert self.value is None or not bool(reset_B.any())
        return self

    def select(self, lanes: Sequence[int]) -> "PortState":
        """All lanes, as a score wants them."""
        assert list(lanes) == list(range(self.lanes))
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Nothing is kept of a score that is this short."""
        return {}


class Port(Predictor[PortState]):
    """The port as a predictor."""

    def __init__(self, config: ModelConfig, vocabulary: Tokenizer, seed: int) -> None:
        torch.manual_seed(seed)
        self.vocabulary, self.segment = vocabulary, config.segment
        self.warmup = config.memory + config.rate * config.compressed
        self.net, self.forward = others.lucidrains(config, vocabulary.size)

    def begin(self, lanes: int) -> PortState:
        """Nothing."""
        return PortState(lanes)

    @torch.no_grad()
    def read(
        self, tokens_Bt: Tensor, state: PortState, counts: Sequence[int] | None = None
    ) -> tuple[Tensor, PortState]:
        """Logits [B, T, V] of a segment."""
        assert counts is None
        self.net.eval()
        logits, after, _ = self.forward(tokens_Bt, state.value)
        self.net.train()
        return logits, PortState(state.lanes, after)

    def restore(self, tensors: Mapping[str, Tensor]) -> PortState:
        """A score begins anew."""
        raise NotImplementedError
