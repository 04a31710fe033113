"""Checkpoints: complete or not there, and the same files at every ZeRO stage.

A run's `checkpoints/` holds folders `step-00001000` and a file `latest` that names the newest:

    model.safetensors        weights in float32, for scoring, generation and resuming
    optimizer-0.safetensors  of each rank: whole optimiser state of its share of the parameters
    rank-0.safetensors       of each rank: memory of its lanes, state of its random generators
    state.json               step, lane cursors, probe, hashes of shards and vocabulary

and, of a run with sparse matrices, for resuming (lm/training/sparsity.py):

    sparse.safetensors              which weights model.safetensors has
    reservoir-00000500.safetensors  all weights as they were when the run first saved them; later
                                    checkpoints share this file with the first

No file is a pickle, so reading a stranger's checkpoint runs none of its code. Another number of
ranks or another stage may read what one wrote.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from data.common.files import read_json
from lm.model import CompressiveTransformer, MemoryState
from lm.training.dist import World

LATEST = "latest"
WEIGHTS = "model.safetensors"
STATE = "state.json"
SETS = "sparse.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """What this rank writes to a checkpoint, as it was at a step."""

    step: int
    files: dict[str, dict[str, Tensor]]
    """Tensors by file and name; the training that goes on does not touch them."""
    links: dict[str, Path]
    """Files that an earlier checkpoint has too."""
    state: dict[str, Any]
    """What goes to state.json: the same on every rank."""


def newest(run: Path) -> Path | None:
    """The newest complete checkpoint of a run, or None."""
    latest = run / "checkpoints" / LATEST
    if not latest.is_file():
        return None
    return find(run, latest.read_text().strip())


def find(run: Path, name: str) -> Path:
    """A checkpoint of a run by its folder's name.

    Raises:
        ValueError: there is none; names those that are there.
    """
    folder = run / "checkpoints" / name
    if not (folder / STATE).is_file():
        known = ", ".join(p.name for p in sorted((run / "checkpoints").glob("step-*"))) or "none"
        raise ValueError(f"{run} has no checkpoint {name}; there are: {known}")
    return folder


def load_weights(model: CompressiveTransformer, path: Path) -> None:
    """Read the weights of a checkpoint into a model.

    Raises:
        ValueError: the file is damaged, or belongs to a model of other sizes.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); use another checkpoint") from error
    parameters = dict(model.named_parameters())
    wrong = sorted(tensors.keys() ^ parameters.keys()) or [
        name for name, p in parameters.items() if p.shape != tensors[name].shape
    ]
    if wrong:
        raise ValueError(f"{path} holds weights of another model: {wrong[0]} does not match")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


class Tensors(Mapping[str, Tensor]):
    """Tensors of several safetensors files by name, read when they are asked for."""

    def __init__(self, paths: list[Path]) -> None:
        self.files: dict[str, Any] = {}
        for path in paths:
            try:
                file = safe_open(path, framework="pt")
            except (SafetensorError, OSError) as error:
                raise ValueError(
                    f"{path} cannot be read ({error}); use another checkpoint"
                ) from error
            self.files |= dict.fromkeys(file.keys(), file)

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self.files[name].get_tensor(name)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def optimizer_tensors(folder: Path, state: dict[str, Any]) -> Tensors:
    """The whole optimiser state of a checkpoint, as lm.training.whole wants it."""
    return Tensors([folder / f"optimizer-{rank}.safetensors" for rank in range(state["ranks"])])


def rank_tensors(memory: MemoryState, world: World) -> dict[str, Tensor]:
    """What only this rank has: the memory of its lanes and its random generators.

    Nothing in training draws from Python's or numpy's global generators.
    """
    tensors = {"rng.cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(world.device)
    for layer, (slots, compressed) in enumerate(zip(memory.memory, memory.compressed, strict=True)):
        tensors[f"memory.{layer}"] = slots.cpu().contiguous()
        tensors[f"compressed.{layer}"] = compressed.cpu().contiguous()
    tensors["memory_count"] = memory.memory_count.cpu()
    tensors["compressed_count"] = memory.compressed_count.cpu()
    return tensors


def restore_rank(
    folder: Path, state: dict[str, Any], memory: MemoryState, world: World, seed: int
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
    """
    ranks = [Tensors([folder / f"rank-{rank}.safetensors"]) for rank in range(state["ranks"])]
    if world.size == len(ranks):
        mine = ranks[world.rank]
        torch.set_rng_state(mine["rng.cpu"])
        if "rng.cuda" in mine and world.device.type == "cuda":
            torch.cuda.set_rng_state(mine["rng.cuda"], world.device)
        stored = _memory(mine)
    else:
        words = np.random.SeedSequence([seed, state["step"], world.rank]).generate_state(2)
        torch.manual_seed(int(words[0]) << 31 ^ int(words[1]))
        first = world.rank * memory.lanes
        everyone = MemoryState.concatenate([_memory(tensors) for tensors in ranks])
        stored = everyone.lane_slice(slice(first, first + memory.lanes))
    dtype = memory.memory[0].dtype
    return stored.map(lambda t: t.to(world.device, dtype if t.is_floating_point() else None))


def _memory(tensors: Mapping[str, Tensor]) -> MemoryState:
    layers = sum(name.startswith("memory.") for name in tensors)
    return MemoryState(
        tuple(tensors[f"memory.{layer}"] for layer in range(layers)),
        tuple(tensors[f"compressed.{layer}"] for layer in range(layers)),
        tensors["memory_count"],
        tensors["compressed_count"],
    )


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint."""
    state: dict[str, Any] = read_json(folder / STATE)
    return state
