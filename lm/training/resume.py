"""What a checkpoint holds beside the weights, and how a rank goes on from it.

The loss of a fixed batch proves that a checkpoint was read back whole.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.common.tensors import TensorFile
from data.lanes import LaneReader
from data.shards import Shards
from lm.feeding import tensors
from lm.model.memory import MemoryState
from lm.objectives.objective import Unroll
from lm.runs.checkpoints import MEND, CheckpointState, read_state
from lm.runs.run_config import RunConfig, identity
from lm.training.dist import World
from lm.training.engine import STEP


@dataclass(frozen=True)
class Snapshot:
    """What this rank writes to a checkpoint, as it was at a step."""

    step: int
    files: dict[str, dict[str, Tensor]]
    """Tensors by file and name; the training that goes on does not touch them."""
    links: dict[str, Path]
    """Files that an earlier checkpoint has too."""
    state: dict[str, Any]
    """What goes to state.json beside the step, fields of CheckpointState: the same on all ranks."""


def matching_state(folder: Path, shards: Shards, config: RunConfig) -> CheckpointState:
    """state.json of a checkpoint; ValueError if it is of other shards or of another run."""
    state = read_state(folder)
    if state.shards != shards.hash:
        raise ValueError(
            f"{folder} was trained on other shards than {shards.path}; prepare the same "
            "shards again or give another --run folder"
        )
    if state.identity not in (None, identity(config)):
        raise ValueError(
            f"{folder} is of another run than the config.yaml beside it describes: put back "
            "the file, or the checkpoint where it belongs"
        )
    return state


class Tensors(Mapping[str, Tensor]):
    """Tensors of several files by name, checked as they are asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.files = {
            name: file for path in paths for file in [TensorFile(path, MEND)] for name in file
        }
        self.folder = paths[0].parent if paths else Path()

    def __getitem__(self, name: str) -> Tensor:
        """A tensor by name; ValueError where no file has it, or it has changed."""
        if name not in self.files:
            raise ValueError(f"{self.folder} lacks {name}; {MEND}")
        return self.files[name][name]

    def __contains__(self, name: object) -> bool:
        return name in self.files

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def optimizer_tensors(
    folder: Path, state: CheckpointState, shapes: Mapping[str, tuple[int, ...]]
) -> Tensors:
    """The whole optimiser state of a checkpoint, as lm.training.engine wants it.

    Args:
        folder: a checkpoint.
        state: its state.json.
        shapes: of the parameters by name.

    Raises:
        ValueError: a file is damaged, or it is not the state of these parameters.
    """
    tensors = Tensors([folder / f"optimizer-{rank}.safetensors" for rank in range(state.ranks)])
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, file in tensors.files.items():
        name, _, entry = key.rpartition("/")
        found.setdefault(name, {})[entry] = file.shape(key)
    # Muon keeps other entries of matrices than of vectors, and none of them is a part of the other.
    kinds = {frozenset(has) for has in found.values()}
    for name, has in found.items():
        shape = shapes.get(name)
        cut = any(has.keys() < kind for kind in kinds)
        shaped = all(size == (() if entry == STEP else shape) for entry, size in has.items())
        if shape is None or cut or not shaped:
            raise ValueError(f"{folder} has not the optimiser's whole state of {name}; {MEND}")
    return tensors


def rank_tensors(memory: MemoryState, world: World) -> dict[str, Tensor]:
    """What only this rank has: the memory of its lanes and its random generators."""
    kept = {name: tensor.cpu().contiguous() for name, tensor in memory.tensors().items()}
    return world.random_state() | kept


def restore_rank(
    folder: Path, state: CheckpointState, memory: MemoryState, world: World, seed: int
) -> MemoryState:
    """Set this rank's random generators and return the memory of its lanes.

    On another number of ranks than that which saved, memory goes to the new owners of the lanes and
    every rank draws from a new stream that depends on seed, step and rank.

    Args:
        folder: a checkpoint.
        state: its state.json.
        memory: of this rank's lanes; its shapes say which part of the lanes it is.
        world: this rank.
        seed: the run's.

    Raises:
        ValueError: a file is damaged, or has memory of other shapes.
    """
    paths = [folder / f"rank-{rank}.safetensors" for rank in range(state.ranks)]
    if world.size == len(paths):
        mine = TensorFile(paths[world.rank], MEND)
        _set_generators(mine, world)
        stored = _memory(mine, memory)
    else:
        words = np.random.SeedSequence([seed, state.step, world.rank]).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))
        first = world.rank * memory.lanes
        everyone = MemoryState.concatenate(
            [_memory(TensorFile(path, MEND), memory) for path in paths]
        )
        stored = everyone.lane_slice(slice(first, first + memory.lanes))
    if stored.lanes != memory.lanes:
        raise ValueError(f"{folder} has the memory of another number of lanes; {MEND}")
    return MemoryState.join([stored, memory], lambda pair: pair[0].to(pair[1]))


def _set_generators(mine: TensorFile, world: World) -> None:
    try:
        world.set_random_state(mine)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"{mine.path} holds no state of random generators ({error}); {MEND}"
        ) from None


def _memory(file: TensorFile, like: MemoryState) -> MemoryState:
    """The memory in a rank's file, in the shapes of `like` but for the number of lanes."""
    counts = {f"{name}_count" for name in like.counts}
    stored = {
        name: file.take(name, torch.int64 if name in counts else None, (None, *part.shape[1:]))
        for name, part in like.tensors().items()
    }
    state = MemoryState.from_tensors(stored)
    for name, live in state.counts.items():
        # Slots of that name, where there are any, are counted; other counts have no bound.
        slots = [layer[name].shape[1] for layer in like.layers if name in layer]
        beyond = bool(slots) and bool((live > max(slots)).any())
        if beyond or bool((live < 0).any()):
            raise ValueError(f"{file.path} counts more slots in {name} than there are; {MEND}")
    if any(len(part) != state.lanes for part in stored.values()):
        raise ValueError(f"{file.path} has parts of different numbers of lanes; {MEND}")
    return state


SEGMENTS = 2
"""The second segment reads the first through memory."""
TOLERANCE = {"float32": 1e-4, "bf16": 2e-2}
"""Relative: another machine or number of threads sums in another order."""


@torch.no_grad()
def probe(module: Unroll, shards: Shards, device: torch.device) -> float:
    """Nats of the first segments of the training split, read by one lane without dropout.

    Every rank computes the same.
    """
    model = module.model
    reader = LaneReader(shards.split("train"), lanes=1, segment=model.config.segment)
    segments = [tensors(reader.next(), slice(None), device) for _ in range(SEGMENTS)]
    training = model.training
    model.eval()
    losses, _, _ = module(segments, model.empty_memory(1))
    model.train(training)
    return losses["nats"][0].item()


def check_probe(value: float, stored: float | None, precision: str, folder: Path) -> None:
    """Compare the probe of a restored model with that of the saved one.

    Raises:
        ValueError: they differ by more than rounding.
    """
    if stored is not None and not abs(value - stored) <= TOLERANCE[precision] * abs(stored):
        raise ValueError(
            f"{folder} does not give the loss it was saved with ({value:.4f} instead of "
            f"{stored:.4f} nats), so its weights are damaged; continue from another checkpoint "
            "with --checkpoint"
        )
