"""Checkpoints: complete or not there.

A run's `checkpoints/` holds folders `step-00001000` and a file `latest` that names the newest:

    model.safetensors   weights, for scoring, generation and export
    rank-0.safetensors  of each rank: memory of its lanes, state of its random generators
    state.json          step, lane cursors, sizes of the model, hashes of shards and vocabulary
    engine/             DeepSpeed's own: weights and optimiser

Everything is written to a hidden folder, synced and renamed; `latest` moves last.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from data.files import atomic_path, publish_folder, read_json, write_json
from lm.model import CompressiveTransformer, MemoryState
from lm.training.dist import World

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

LATEST = "latest"


@dataclass(frozen=True)
class Progress:
    """Where a run stands, beside weights and optimiser."""

    step: int
    """Optimiser steps done."""
    memory: MemoryState
    """Memory of this rank's lanes."""
    state: dict[str, Any]
    """What goes to state.json: the same on every rank."""


def save(run: Path, engine: "DeepSpeedEngine", progress: Progress, world: World, keep: int) -> Path:
    """Write a checkpoint with all ranks; returns its folder. Keeps only the newest `keep`."""
    folder = run / "checkpoints"
    final = folder / f"step-{progress.step:08d}"
    partial = folder / f".{final.name}.partial"
    if world.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    engine.save_checkpoint(str(partial / "engine"), tag="state", save_latest=False)
    save_file(_rank_tensors(progress.memory, world), partial / f"rank-{world.rank}.safetensors")
    if world.first:
        save_weights(engine.module, partial / "model.safetensors")
        write_json(partial / "state.json", {"step": progress.step, **progress.state})
    world.barrier()
    if world.first:
        shutil.rmtree(final, ignore_errors=True)
        publish_folder(partial, final)
        with atomic_path(folder / LATEST) as temporary:
            temporary.write_text(final.name + "\n")
        for old in sorted(folder.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    world.barrier()
    return final


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
    if not (folder / "state.json").is_file():
        known = ", ".join(p.name for p in sorted((run / "checkpoints").glob("step-*"))) or "none"
        raise ValueError(f"{run} has no checkpoint {name}; there are: {known}")
    return folder


def restore(folder: Path, engine: "DeepSpeedEngine", memory: MemoryState, world: World) -> Progress:
    """Load weights, optimiser, random generators and memory of this rank.

    Args:
        folder: a checkpoint.
        engine: of a model of the same sizes.
        memory: memory of this rank's lanes; its shapes say which part of the lanes it is.
        world: this rank; the number of ranks may differ from that which saved.
    """
    engine.load_checkpoint(str(folder / "engine"), tag="state")
    state = read_json(folder / "state.json")
    ranks = [load_file(folder / f"rank-{r}.safetensors") for r in range(state["ranks"])]
    stored = MemoryState.concatenate([_memory(tensors) for tensors in ranks])
    first = world.rank * memory.lanes
    device = memory.memory_count.device
    mine = stored.lane_slice(slice(first, first + memory.lanes)).map(lambda t: t.to(device))
    if world.size == len(ranks):
        torch.set_rng_state(ranks[world.rank]["rng.cpu"])
        if "rng.cuda" in ranks[world.rank]:
            torch.cuda.set_rng_state(ranks[world.rank]["rng.cuda"], device)
    return Progress(state["step"], mine, state)


def _rank_tensors(memory: MemoryState, world: World) -> dict[str, Tensor]:
    tensors = {"rng.cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(world.device)
    for layer, (slots, compressed) in enumerate(zip(memory.memory, memory.compressed, strict=True)):
        tensors[f"memory.{layer}"] = slots.contiguous()
        tensors[f"compressed.{layer}"] = compressed.contiguous()
    tensors["memory_count"] = memory.memory_count
    tensors["compressed_count"] = memory.compressed_count
    return tensors


def _memory(tensors: dict[str, Tensor]) -> MemoryState:
    layers = sum(name.startswith("memory.") for name in tensors)
    return MemoryState(
        tuple(tensors[f"memory.{layer}"] for layer in range(layers)),
        tuple(tensors[f"compressed.{layer}"] for layer in range(layers)),
        tensors["memory_count"],
        tensors["compressed_count"],
    )


def save_weights(model: torch.nn.Module, path: Path) -> None:
    """Write a model's parameters, each once (a tied head is its embedding)."""
    save_file({n: p.detach().cpu().contiguous() for n, p in model.named_parameters()}, path)


def load_weights(model: CompressiveTransformer, path: Path) -> None:
    """Read what `save_weights` wrote.

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
