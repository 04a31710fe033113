"""What benchmarks measure: text, models, batches and training steps, each built in one way."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data.lanes import LaneReader
from data.options import DataConfig
from data.prepare import prepare
from data.shards import Shards, open_shards
from lm.feeding import tensors
from lm.model.memory import MemoryState
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import Segment, segment_loss
from lm.runs.run_config import RunConfig

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CPU = torch.device("cpu")
BYTES = 256
SMALL = ModelConfig(
    layers=4,
    width=256,
    heads=4,
    feedforward=1024,
    segment=128,
    memory=128,
    compressed=32,
    rate=4,
)

Losses = Callable[[Segment, Any], tuple[Tensor, Any]]
"""(segment, memory or None) -> loss, memory cut off from its graph."""
Batches = Callable[[], Segment]
"""The next segment."""


def random_text(folder: Path, size: int = 2_000_000) -> None:
    """Random letters in twenty files of a new folder, `size` bytes in all."""
    letters = np.random.default_rng(0).integers(97, 123, size, dtype=np.uint8)
    folder.mkdir()
    for number, part in enumerate(np.array_split(letters, 20)):
        (folder / f"{number}.txt").write_bytes(part.tobytes())


def random_shards(folder: Path, size: int = 2_000_000) -> Shards:
    """Byte shards of random letters, where only their length matters, in a folder that exists."""
    random_text(folder / "text", size)
    target = folder / "shards"
    prepare(DataConfig("text", target, source=str(folder / "text")))
    return open_shards(target)


def new_model(
    config: ModelConfig, vocabulary: int = BYTES, device: torch.device = CPU
) -> CompressiveTransformer:
    """A model whose weights depend on its shape alone."""
    torch.manual_seed(0)
    return CompressiveTransformer(config, vocabulary).to(device)


def filled(config: ModelConfig, memory: MemoryState) -> MemoryState:
    """Memory whose every slot counts as live, whatever it holds."""
    return memory.with_counts(
        memory=torch.full_like(memory.memory_count, config.memory),
        compressed=torch.full_like(memory.compressed_count, config.compressed),
    )


def segments_to_fill(config: ModelConfig) -> int:
    """Segments after which all memory is live."""
    return -(-config.memory // config.segment) + -(-config.compressed // config.windows) + 1


def random_batches(
    config: ModelConfig, lanes: int, vocabulary: int = BYTES, device: torch.device = CPU
) -> Batches:
    """Segments of random tokens, the same in every process."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (lanes, config.segment + 1)
    scored_BT = torch.ones(lanes, config.segment, dtype=torch.bool, device=device)
    reset_B = torch.zeros(lanes, dtype=torch.bool, device=device)

    def batch() -> Segment:
        tokens = torch.randint(vocabulary, shape, device=device, generator=generator)
        return Segment(tokens[:, :-1], tokens[:, 1:], scored_BT, reset_B)

    return batch


def read_batches(config: RunConfig, shards: Shards, device: torch.device = CPU) -> Batches:
    """The segments that a run trains on, read when they are wanted."""
    training, segment = config.training, config.model.segment
    split = shards.split("train")
    reader = LaneReader(split, lanes=training.lanes, segment=segment, seed=training.seed)
    return lambda: tensors(reader.next(), slice(None), device)


def losses_of(model: CompressiveTransformer, resets: bool = False) -> Losses:
    """What a step of a model minimises; `resets` clears the lanes that segments say."""

    def losses(segment: Segment, memory: MemoryState | None) -> tuple[Tensor, MemoryState]:
        memory = memory or model.empty_memory(len(segment.inputs_BT))
        memory = memory.reset(segment.reset_B) if resets else memory
        output = model(segment.inputs_BT, memory, segment.targets_BT)
        return segment_loss(output), output.memory.detach()

    return losses


class Step:
    """A training step by hand in torch: forward, backward, clipping and the optimiser, which leaves
    the gradients; memory moves on.

    Args:
        module: what is trained.
        losses: what is minimised.
        batches: what it is trained on.
        optimizer: by default AdamW.
        clip: largest norm of the gradient.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Losses,
        batches: Batches,
        optimizer: torch.optim.Optimizer | None = None,
        clip: float = 0.1,
    ) -> None:
        self.weights = list(module.parameters())
        self.losses, self.batches, self.clip = losses, batches, clip
        self.optimizer = optimizer or torch.optim.AdamW(self.weights, lr=1e-4, fused=True)
        self.memory: Any = None

    def __call__(self) -> None:
        """Train by one segment."""
        self.optimizer.zero_grad()
        loss, self.memory = self.losses(self.batches(), self.memory)
        loss.backward()
        nn.utils.clip_grad_norm_(self.weights, self.clip)
        self.optimizer.step()


def random_step(model: CompressiveTransformer, lanes: int) -> Step:
    """The step of a model on random tokens, by AdamW."""
    device = model.embedding.weight.device
    batches = random_batches(model.config, lanes, model.vocabulary, device)
    return Step(model, losses_of(model), batches)
