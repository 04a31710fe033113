"""A trained model out of a run's folder, for scoring and generation."""

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path

import torch

from data.common.files import hash_file
from data.common.tensors import TensorFile
from data.tokenizers.registry import Tokenizer, load_tokenizer
from lm.inference.inference_config import Lengths
from lm.inference.predictor import ModelPredictor
from lm.model.transformer import CompressiveTransformer
from lm.runs import checkpoints
from lm.runs.checkpoints import WEIGHTS
from lm.runs.run_config import RunConfig, read_config
from lm.sparse.state import densify, put_sets, require_sets
from lm.sparse.topkast import sparsify


@dataclass(frozen=True)
class LoadedRun:
    """A run's model, ready to predict."""

    config: RunConfig
    """As trained; `model.config` has the lengths asked for."""
    model: CompressiveTransformer
    vocabulary: Tokenizer
    checkpoint: Path
    """Folder that the weights come from."""
    weights: str
    """SHA-256 of the file of the weights as they were loaded; another may lie there by now."""

    @cached_property
    def predictor(self) -> ModelPredictor:
        """The model as whatever assigns probabilities to a text."""
        return ModelPredictor(self.model, self.vocabulary)


def load_run(run: Path, name: str | None = None, lengths: Lengths | None = None) -> LoadedRun:
    """Load a checkpoint of a run, the newest by default, in evaluation mode, on the GPU if any.

    Sparse matrices come as dense ones that are zero outside the forward set.

    Raises:
        ValueError: no run or no such checkpoint there, damaged weights, or impossible lengths.
    """
    config, folder = _found(run, name)
    wanted = {field.name: getattr(lengths, field.name, None) for field in fields(Lengths)}
    changes = {name: value for name, value in wanted.items() if value is not None}
    if changes.get("compressed") and not config.model.compressed:
        raise ValueError(f"{run} was trained without compressed memory; leave --compressed out")
    # Read with the compression that the weights know, even if compressed memory is left out.
    forgotten = (
        changes.get("compressed") == 0 and changes.pop("compressed") < config.model.compressed
    )
    vocabulary = load_tokenizer(run / "vocabulary")
    # How training computes says nothing of the machine that reads.
    shorter = replace(config, model=replace(config.model, backend="auto", **changes))
    model, weights = _filled(shorter, vocabulary.size, folder), hash_file(folder / WEIGHTS)
    densify(model)
    model = without_compressed(model) if forgotten else model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return LoadedRun(config, model.eval().to(device), vocabulary, folder, weights)


def parts_of(run: Path) -> list[Path]:
    """What a run is made of: files and folders that no result of another program may replace.

    Raises:
        ValueError: there is no run.
    """
    return [*pieces(run), _config(run).data.shards]


def pieces(run: Path) -> list[Path]:
    """What lies in the folder of a run and makes it one."""
    names = ("config.yaml", "env.json", "metrics.jsonl", "checkpoints", "vocabulary")
    return [run / name for name in names]


def load_trained(run: Path, name: str | None = None) -> CompressiveTransformer:
    """A run's model on the host in the form it was trained in, sparse matrices as such.

    Raises:
        ValueError: no run or no such checkpoint there, or damaged weights.
    """
    config, folder = _found(run, name)
    return _filled(config, load_tokenizer(run / "vocabulary").size, folder)


def _found(run: Path, name: str | None) -> tuple[RunConfig, Path]:
    """A run's config and the folder of its checkpoint."""
    config = _config(run)
    folder = checkpoints.newest(run) if name is None else checkpoints.find(run, name)
    if folder is None:
        raise ValueError(f"{run} has no checkpoint yet; let python -m lm.train go on")
    return config, folder


def _config(run: Path) -> RunConfig:
    if not (run / "config.yaml").is_file():
        raise ValueError(f"{run} holds no run; train one with python -m lm.train --run {run}")
    return read_config(run / "config.yaml")


def _filled(config: RunConfig, vocabulary: int, folder: Path) -> CompressiveTransformer:
    """A model in the form it was trained in, with the weights of a checkpoint."""
    model = CompressiveTransformer(config.model, vocabulary)
    topkast = sparsify(model, replace(config.sparse, reservoir=None), config.power, seed=0)
    checkpoints.load_weights(model, folder / WEIGHTS)
    if topkast.matrices:
        sets = TensorFile(folder / checkpoints.SETS, checkpoints.MEND)
        require_sets(topkast, sets)
        put_sets(topkast, sets)
    return model


def without_compressed(model: CompressiveTransformer) -> CompressiveTransformer:
    """A model with the same weights that has no compressed memory, nor weights for it."""
    shorter = CompressiveTransformer(replace(model.config, compressed=0), model.vocabulary)
    weights = model.state_dict()
    shorter.load_state_dict({name: weights[name] for name in shorter.state_dict()})
    return shorter
