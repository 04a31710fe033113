"""Checkpoints: complete or not there, and the same files at every ZeRO stage.

A run's `checkpoints/` holds folders `step-00001000`:

    model.safetensors        weights in float32, for scoring, generation and resuming
    optimizer-0.safetensors  of each rank: whole optimiser state of its share of the parameters
    rank-0.safetensors       of each rank: memory of its lanes, state of its random generators
    state.json               step, lane cursors, probe, hashes of shards and vocabulary

and, of a run with sparse matrices, for resuming (lm/training/sparsity.py):

    sparse.safetensors              which weights model.safetensors has
    reservoir-00000500.safetensors  all weights as they were when the run first saved them; later
                                    checkpoints share this file with the first

The newest of them is where the run stands. A file `latest` names it for people and their scripts;
nothing here reads it. Whatever else lies there is no checkpoint and is left alone.

No file is a pickle, so reading a stranger's checkpoint runs none of its code. Another number of
ranks or another stage may read what one wrote.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from data.common.schema import Count, Record, Sha256, Size, read_record
from data.common.tensors import TensorFile
from lm.model import CompressiveTransformer, MemoryState
from lm.sparse.routes import Route
from lm.training.dist import World
from lm.training.whole import STEP

LATEST = "latest"
WEIGHTS = "model.safetensors"
STATE = "state.json"
SETS = "sparse.safetensors"
MEND = "use another checkpoint with --checkpoint"


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


class VocabularyState(Record):
    """Which vocabulary the weights are for."""

    hash: str
    size: Size


class SparseState(Record):
    """What there is to know of sparse matrices beside their tensors."""

    reservoir: Annotated[str, Field(pattern=r"^reservoir-\d+\.safetensors$")]
    """File of the checkpoint that has the weights outside the sets."""
    changed: dict[str, float]
    routes: dict[str, Route]


class Owed(Record):
    """What was due after the step of a checkpoint and not done, because a signal came."""

    validation: dict[str, float] | None = None
    """Where attention went in the step, which the record of this validation holds too."""
    sample: bool = False


class MeterState(Record):
    """Sums over the steps since the last record of metrics.jsonl, and seconds of all steps."""

    nats: float
    tokens: float
    seconds: float
    total_seconds: float


class CheckpointState(Record):
    """state.json."""

    step: Count
    ranks: Count
    """How many wrote optimiser and memory; 0: the weights are all there is."""
    shards: str
    """Hash of the shards."""
    vocabulary: VocabularyState | None = None
    lanes: dict[str, Count | list[Count]] = Field(default_factory=dict)
    """Reading positions, of all lanes."""
    skipped: Count = 0
    sparse: Annotated[SparseState | None, BeforeValidator(lambda value: value or None)] = None
    probe: float | None = None
    """Nats of the first segments of the training split, as the weights were saved; none if that is
    not finite."""
    precision: str | None = None
    identity: Sha256 | None = None
    """Of what may not change in a run."""
    validation_bits_per_byte: float | None = None
    validation_bits_per_token: float | None = None
    """Of text that the tokens do not give back."""
    owed: Owed = Owed()
    steps: Size | None = None
    """Length of the run as far as it was known."""
    minutes: float | None = None
    seconds: float | None = None
    """For how long the run had trained."""
    meter: MeterState | None = None


def name_of(step: int) -> str:
    """Name of the checkpoint of a step."""
    return f"step-{step:08d}"


def step_of(name: str) -> int | None:
    """The step of a checkpoint's name; None for any other name."""
    found = re.fullmatch(r"step-([0-9]{8,18})", name)
    return int(found[1]) if found and name == name_of(int(found[1])) else None


def listed(run: Path) -> dict[int, Path]:
    """Folders of a run that have the name of a checkpoint, whole or not, by step in order."""
    place = run / "checkpoints"
    paths = list(place.iterdir()) if place.is_dir() else []
    steps = {step: path for path in paths if (step := step_of(path.name)) is not None}
    return {step: steps[step] for step in sorted(steps) if steps[step].is_dir()}


def lacking(folder: Path) -> str | None:
    """What keeps a folder from being a whole checkpoint, or None."""
    if not (folder / STATE).is_file():
        return f"{STATE} is missing"
    try:
        state = read_state(folder)
    except (ValueError, OSError) as error:
        return str(error).removeprefix(f"{folder}/").partition(";")[0]
    if state.step != step_of(folder.name):
        return f"{STATE} is that of step {state.step}"
    files = [WEIGHTS]
    for rank in range(state.ranks):
        files += [f"optimizer-{rank}.safetensors", f"rank-{rank}.safetensors"]
    if state.sparse is not None:
        files += [SETS, state.sparse.reservoir]
    there = {path.name for path in folder.iterdir()}
    return next((f"{name} is missing" for name in files if name not in there), None)


def newest(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None if it has none.

    Raises:
        ValueError: the newest is not whole.
    """
    folders = listed(run)
    return find(run, name_of(max(folders))) if folders else None


def find(run: Path, name: str) -> Path:
    """A checkpoint of a run by its folder's name.

    Raises:
        ValueError: there is none, or it is not whole; names those that can be used.
    """
    folders = {path.name: path for path in listed(run).values()}
    reason = lacking(folders[name]) if name in folders else "there is no such folder"
    if reason is None:
        return folders[name]
    usable = [other for other, path in folders.items() if other != name and not lacking(path)]
    if name not in folders:
        known = ", ".join(usable) or "none"
        raise ValueError(f"{run} has no checkpoint {ascii(name)[1:-1]}; there are: {known}")
    instead = f"use another with --checkpoint {usable[-1]}" if usable else "put it back"
    raise ValueError(f"{folders[name]} is no whole checkpoint ({reason}): {instead}")


def load_weights(model: CompressiveTransformer, path: Path) -> None:
    """Read the weights of a checkpoint into a model.

    Raises:
        ValueError: the file is damaged, lacks a weight or has one that is no number, or belongs to
            a model of other sizes.
    """
    file = TensorFile(path, MEND)
    parameters = dict(model.named_parameters())
    wrong = sorted(set(file) ^ parameters.keys())
    if wrong:
        how = "lacks" if wrong[0] in parameters else "has"
        raise ValueError(
            f"{path} holds weights of another model: it {how} {wrong[0]}, {len(wrong)} names "
            f"differ; {MEND}"
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            weight = file.take(name, torch.float32, parameter.shape)
            if not weight.isfinite().all():
                raise ValueError(f"{path} has numbers in {name} that are not finite; {MEND}")
            parameter.copy_(weight)


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
    folder: Path, state: CheckpointState, parameters: Mapping[str, nn.Parameter]
) -> Tensors:
    """The whole optimiser state of a checkpoint, as lm.training.whole wants it.

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
        parameter = parameters.get(name)
        # At stage 3 a parameter is whole on no rank.
        shape = None if parameter is None else getattr(parameter, "ds_shape", parameter.shape)
        cut = any(has.keys() < kind for kind in kinds)
        shaped = all(size == (() if entry == STEP else shape) for entry, size in has.items())
        if parameter is None or cut or not shaped:
            raise ValueError(f"{folder} has not the optimiser's whole state of {name}; {MEND}")
    return tensors


def rank_tensors(memory: MemoryState, world: World) -> dict[str, Tensor]:
    """What only this rank has: the memory of its lanes and its random generators.

    Nothing in training draws from Python's or numpy's global generators.
    """
    tensors = {"rng.cpu": torch.get_rng_state()}
    if world.device.type == "cuda":
        tensors["rng.cuda"] = torch.cuda.get_rng_state(world.device)
    return tensors | {n: t.cpu().contiguous() for n, t in memory.tensors().items()}


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
    dtype = memory.memory[0].dtype
    return stored.map(lambda t: t.to(world.device, dtype if t.is_floating_point() else None))


def _set_generators(mine: TensorFile, world: World) -> None:
    try:
        torch.set_rng_state(mine["rng.cpu"])
        if "rng.cuda" in mine and world.device.type == "cuda":
            torch.cuda.set_rng_state(mine["rng.cuda"], world.device)
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


def read_state(folder: Path) -> CheckpointState:
    """state.json of a checkpoint; ValueError if it is damaged."""
    return read_record(CheckpointState, folder / STATE, MEND)
