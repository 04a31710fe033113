"""Checkpoints: complete or not there, and the same files at every ZeRO stage.

A run's `checkpoints/` holds folders `step-00001000`:

    model.safetensors        weights in float32, for scoring, generation and resuming; of a model
                             that was adopted in bfloat16, in that
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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from data.common.schema import Count, Record, Sha256, Size, read_record
from data.common.tensors import TensorFile
from lm.model.transformer import CompressiveTransformer
from lm.runs.merging import MergedFile
from lm.sparse.routes import Route

LATEST = "latest"
WEIGHTS = "model.safetensors"
STATE = "state.json"
SETS = "sparse.safetensors"
MEND = "use another checkpoint with --checkpoint"


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
    adapter_scale: float | None = None
    """What adapters of the weights are multiplied by (lm/runs/merging.py), if there are any."""
    teacher: Sha256 | None = None
    """Of the weights that teach, if there are any."""
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


def open_weights(folder: Path) -> TensorFile:
    """The weights of a checkpoint, its adapters merged, by the names of a model without; ValueError
    if the file is damaged.
    """
    scale = read_state(folder).adapter_scale
    path = folder / WEIGHTS
    return TensorFile(path, MEND) if scale is None else MergedFile(path, MEND, scale)


def load_weights(model: CompressiveTransformer, file: TensorFile) -> None:
    """Read the weights of a checkpoint into a model, whatever numbers that computes with.

    Args:
        model: has the parameters that the file has.
        file: `open_weights`, or for a model with adapters the file as it is.

    Raises:
        ValueError: the file is damaged, lacks a weight or has one that is no number, or belongs to
            a model of other sizes.
    """
    parameters = dict(model.named_parameters())
    wrong = sorted(set(file) ^ parameters.keys())
    if wrong:
        how = "lacks" if wrong[0] in parameters else "has"
        raise ValueError(
            f"{file.path} holds weights of another model: it {how} {wrong[0]}, {len(wrong)} names "
            f"differ; {MEND}"
        )
    fill(parameters, parameters, file)


@torch.no_grad()
def fill(names: Iterable[str], parameters: Mapping[str, Tensor], file: TensorFile) -> None:
    """Read weights into some parameters of a model by name; errors as of `load_weights`."""
    for name in names:
        parameter = parameters[name]
        kind = torch.bfloat16 if file.halved(name) else torch.float32
        weight = file.take(name, kind, parameter.shape)
        if not weight.isfinite().all():
            raise ValueError(f"{file.path} has numbers in {name} that are not finite; {MEND}")
        parameter.copy_(weight)


def read_state(folder: Path) -> CheckpointState:
    """state.json of a checkpoint; ValueError if it is damaged."""
    return read_record(CheckpointState, folder / STATE, MEND)
