"""A trained model out of a run's folder, for scoring and generation."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from data.common.files import hash_file
from data.common.requirements import require_memory
from data.common.tensors import TensorFile
from data.tokenizers.registry import Tokenizer, load_tokenizer
from lm.inference.inference_config import Lengths, Local, Placement
from lm.inference.predictor import ModelPredictor
from lm.model.compression import needs_float32, require_float32
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.runs import checkpoints
from lm.runs.adopted_config import BASE, AdoptedConfig, StoredConfig, read_stored
from lm.runs.checkpoints import WEIGHTS
from lm.sparse.state import densify, put_sets, require_sets
from lm.sparse.topkast import sparsify


@dataclass(frozen=True)
class LoadedRun:
    """A run's model, ready to predict."""

    config: StoredConfig
    """As trained or adopted; `model.config` has the lengths asked for."""
    model: CompressiveTransformer
    vocabulary: Tokenizer
    checkpoint: Path
    """Folder that the weights come from."""
    weights: str
    """SHA-256 of the file of the weights as they were loaded; another may lie there by now."""
    lanes: int
    """Lanes that it was trained with; 1 for a run that was adopted."""
    readings: float = 1.0
    """Lanes that were read in training for each lane of text."""

    @property
    def shards(self) -> Path:
        """The shards it was trained on; ValueError for a run that was adopted, which has none."""
        if isinstance(self.config, AdoptedConfig):
            # A vocabulary of bytes is nowhere to be taken from.
            of_bytes = self.vocabulary.kind == "bytes"
            option = "--vocabulary bytes" if of_bytes else f"--vocabulary-from {self.folder}"
            raise ValueError(  # noqa: TRY004
                f"{self.folder} was adopted and knows no shards: prepare a text with its "
                f"vocabulary (python -m data.prepare {option}) and give --shards"
            )
        return self.config.data.shards

    @property
    def local(self) -> Local | None:
        """What its local reading saw in training, if it had one."""
        config = self.config
        return None if isinstance(config, AdoptedConfig) else config.training.readings.local

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.checkpoint.parents[1]

    @cached_property
    def predictor(self) -> ModelPredictor:
        """The model as whatever assigns probabilities to a text."""
        return ModelPredictor(self.model, self.vocabulary)


def load_run(
    run: Path,
    name: str | None = None,
    lengths: Lengths | None = None,
    placement: Placement | None = None,
) -> LoadedRun:
    """Load a checkpoint of a run in evaluation mode.

    Sparse matrices come as dense ones that are zero outside the forward set.

    Args:
        run: folder of the run.
        name: of the checkpoint; none: the newest.
        lengths: those that differ from training.
        placement: where it computes and in what numbers; none: on the GPU if any, in float32.

    Raises:
        ValueError: no run or no such checkpoint there, damaged weights, or impossible lengths, or
            there is no such device.
    """
    place = placement or Placement()
    device, dtype = device_of(place), getattr(torch, place.precision)
    config, folder = find_weights(run, name)
    wanted = {field.name: getattr(lengths, field.name, None) for field in fields(Lengths)}
    changes = {name: value for name, value in wanted.items() if value is not None}
    if changes.get("compressed") and not config.model.compressed:
        raise ValueError(f"{run} was trained without compressed memory; leave --compressed out")
    if "sinks" in changes and config.model.sinks and config.model.sink == "learnt":
        raise ValueError(f"the sinks of {run} are weights that it learnt; leave --sinks out")
    # Read with the compression that the weights know, even if compressed memory is left out.
    forgotten = changes.get("compressed") == 0 and config.model.compressed > 0
    vocabulary = load_tokenizer(run / "vocabulary")
    read = with_lengths(config.model, changes)
    if needs_float32(read):
        require_float32(dtype)
    shorter = replace(config, model=with_lengths(config.model, {}) if forgotten else read)
    if config.sparse.density is None and config.power.alpha == 1:
        model = _dense(shorter, vocabulary.size, folder, (device, dtype))
    else:
        model = _filled(shorter, vocabulary.size, folder)
        densify(model)
    weights = hash_file(folder / WEIGHTS)
    model = without_compressed(model, read) if forgotten else model
    own = (1, 1.0)
    if not isinstance(config, AdoptedConfig):
        own = config.training.lanes, config.training.readings.lanes
    return LoadedRun(config, model.eval().to(device, dtype), vocabulary, folder, weights, *own)


def device_of(placement: Placement) -> torch.device:
    """The device that is asked for; ValueError where there is none such."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    name = placement.device or ("cuda" if there["cuda"] else "cpu")
    if not there[name]:
        usable = ", ".join(kind for kind, usable in there.items() if usable)
        raise ValueError(
            f"device {name} is not there, or this torch was built without it; there are: {usable}"
        )
    return torch.device(name)


def parts_of(run: Path) -> list[Path]:
    """What a run is made of: files and folders that no result of another program may replace.

    Raises:
        ValueError: there is no run.
    """
    config = _config(run)
    shards = [] if isinstance(config, AdoptedConfig) else [config.data.shards]
    return [*pieces(run), *shards]


def pieces(run: Path) -> list[Path]:
    """What lies in the folder of a run and makes it one."""
    names = ("config.yaml", "env.json", "metrics.jsonl", "checkpoints", "vocabulary", BASE)
    return [run / name for name in names]


def load_trained(run: Path, name: str | None = None) -> CompressiveTransformer:
    """A run's model on the host in the form it was trained in, sparse matrices as such.

    Raises:
        ValueError: no run or no such checkpoint there, or damaged weights.
    """
    config, folder = find_weights(run, name)
    return _filled(config, load_tokenizer(run / "vocabulary").size, folder)


def find_weights(run: Path, name: str | None) -> tuple[StoredConfig, Path]:
    """A run's config and the folder of one of its checkpoints, by default the newest; ValueError
    where there is none.
    """
    config = _config(run)
    folder = checkpoints.newest(run) if name is None else checkpoints.find(run, name)
    if folder is None:
        raise ValueError(f"{run} has no checkpoint yet; let python -m lm.train go on")
    return config, folder


def stored_precision(folder: Path) -> Literal["float32", "bfloat16"]:
    """The numbers that most weights of a checkpoint are stored in, as `Placement` names them."""
    weights = checkpoints.open_weights(folder)
    sizes = Counter[bool]()
    for name in weights:
        sizes[weights.halved(name)] += math.prod(weights.shape(name))
    return "bfloat16" if sizes[True] > sizes[False] else "float32"


def _config(run: Path) -> StoredConfig:
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} holds no run; train one with python -m lm.train --run {run}")
    return read_stored(run / "config.yaml")


def _dense(
    config: StoredConfig,
    vocabulary: int,
    folder: Path,
    place: tuple[torch.device, torch.dtype],
) -> CompressiveTransformer:
    """A model of dense matrices with the weights of a checkpoint, each read to where it computes:
    no more is held at once than the model and its largest matrix.
    """
    with torch.device("meta"):
        model = CompressiveTransformer(config.model, vocabulary)
    device, dtype = place
    rooms: dict[nn.Parameter, nn.Parameter] = {}
    needed = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    if device.type == "cpu":
        require_memory(needed, f"the model in {folder}")
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight not in rooms:
                room = torch.empty(weight.shape, dtype=dtype, device=device)
                rooms[weight] = nn.Parameter(room)
            # Vectors of words that two modules share stay shared.
            setattr(module, name, rooms[weight])
    checkpoints.load_weights(model, checkpoints.open_weights(folder))
    return model


def _filled(config: StoredConfig, vocabulary: int, folder: Path) -> CompressiveTransformer:
    """A model in the form it was trained in, with the weights of a checkpoint."""
    model = CompressiveTransformer(config.model, vocabulary)
    topkast = sparsify(model, replace(config.sparse, reservoir=None), config.power, seed=0)
    checkpoints.load_weights(model, checkpoints.open_weights(folder))
    if topkast.matrices:
        sets = TensorFile(folder / checkpoints.SETS, checkpoints.MEND)
        require_sets(topkast, sets)
        put_sets(topkast, sets)
    return model


def with_lengths(config: ModelConfig, changes: Mapping[str, Any]) -> ModelConfig:
    """What is read with other lengths; what says something of memory goes where none is left.

    How training computes says nothing of the machine that reads.
    """
    lengths = {name: changes.get(name, getattr(config, name)) for name in ("memory", "compressed")}
    none: dict[str, Any] = {"memory_layers": None, "empty": "masked"}
    return replace(config, backend="auto", **({} if any(lengths.values()) else none), **changes)


def without_compressed(
    model: CompressiveTransformer, config: ModelConfig
) -> CompressiveTransformer:
    """A model with the same weights and other lengths that has no compressed memory, nor weights
    for it.
    """
    shorter = CompressiveTransformer(config, model.vocabulary)
    weights = model.state_dict()
    shorter.load_state_dict({name: weights[name] for name in shorter.state_dict()})
    return shorter.to(model.embedding.weight.dtype)
