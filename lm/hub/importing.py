"""A run out of an exported folder."""

from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict
from torch import Tensor

from data.common.command import load_config
from data.common.files import read_json
from data.common.integrity import write_sealed
from data.common.schema import Record, Size, as_record
from data.common.tensors import TensorFile, save_tensors
from data.tokenizers.registry import Tokenizer
from lm.hub.configuration import refuse_foreign
from lm.hub.weights import MEND
from lm.model.model_config import ModelConfig
from lm.model.ranges import missing_together
from lm.model.transformer import CompressiveTransformer
from lm.runs.adopted_config import AdoptedConfig, StoredConfig
from lm.runs.checkpoints import LATEST, STATE, WEIGHTS, CheckpointState
from lm.runs.run_config import RunConfig, write_config

NAME = "step-00000000"
ONE, INDEX = "model.safetensors", "model.safetensors.index.json"
"""The file of all weights, or of which of several files has each."""


class ExportedConfig(Record):
    """What is read of config.json, beside the fields of ModelConfig; transformers adds more."""

    model_config = ConfigDict(extra="ignore")

    model_type: Literal["compressive_transformer"]
    vocab_size: Size
    run: dict[str, Any]
    """What the run's config said besides the model."""


def read_config(path: Path) -> tuple[StoredConfig, int]:
    """The config of a run and the size of its vocabulary, of the config.json of an exported folder.

    Raises:
        ValueError: a field is missing, mistyped or impossible, or asks for what is not done here.
    """
    try:
        values = read_json(path)
        exported = as_record(ExportedConfig, values)
        refuse_foreign(values)
        names = [field.name for field in fields(ModelConfig)]
        missing = [name for name in ModelConfig().shape() if name not in values]
        if missing and not missing_together(set(missing)):
            raise ValueError(f"{missing[0]} is missing")  # noqa: TRY301 - ends as the others do
        model = {name: values[name] for name in names if name in values}
        kind: type[StoredConfig] = AdoptedConfig if {*exported.run} == {"base"} else RunConfig
        return load_config(kind, exported.run | {"model": model}), exported.vocab_size
    except ValueError as error:
        where = "" if str(error).startswith(str(path)) else f"{path}: "
        raise ValueError(f"{where}{error}; take that of an export by python -m lm.export") from None


def read_weights(folder: Path, config: ModelConfig, vocabulary: int) -> dict[str, Tensor]:
    """The weights of an exported folder by their names in a run, float32.

    Raises:
        ValueError: they are not those of such a model, all of them and no others, or a file is
            missing, damaged or no safetensors.
    """
    files = [TensorFile(folder / name, MEND) for name in sorted(weight_files(folder))]
    stored = {name: file for file in files for name in file}
    if config.layers > len(stored):
        # Even the outline of so many layers might not fit.
        raise ValueError(
            f"{folder} has {len(stored)} weights, too few for the {config.layers} layers of "
            f"config.json; {MEND}"
        )
    try:
        with torch.device("meta"):
            outline = CompressiveTransformer(config, vocabulary)
    except RuntimeError:
        raise ValueError(
            f"config.json in {folder} asks for weights larger than any machine's memory; {MEND}"
        ) from None
    wanted = {f"model.{name}": weight for name, weight in outline.named_parameters()}
    if missing := sorted(wanted.keys() - stored.keys()):
        raise ValueError(f"{folder} lacks the weight {missing[0]}; {MEND}")
    if strange := sorted(stored.keys() - wanted.keys()):
        raise ValueError(f"{folder} has {strange[0]} of another model; {MEND}")
    return {
        name.removeprefix("model."): stored[name].take(name, None, weight.shape).float()
        for name, weight in wanted.items()
    }


def weight_files(folder: Path) -> set[str]:
    """Names of the files of an exported folder's weights; ValueError where none can be."""
    if not (folder / INDEX).is_file():
        if (folder / ONE).is_file():
            return {ONE}
        raise ValueError(
            f"{folder} has no {ONE}, and weights in other formats may hold code: save them as "
            "safetensors"
        )
    index = read_json(folder / INDEX)
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{folder / INDEX} lacks weight_map; {MEND}")
    for name in places.values():
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{folder / INDEX} names {name!r}, which is no file; {MEND}")
    return {*places.values()}


def write_run(
    config: StoredConfig, weights: dict[str, Tensor], vocabulary: Tokenizer, run: Path
) -> None:
    """Write what makes a folder a run."""
    target = run / "checkpoints" / NAME
    target.mkdir(parents=True)
    (run / "vocabulary").mkdir()
    vocabulary.save(run / "vocabulary")
    save_tensors(weights, target / WEIGHTS)
    state = CheckpointState(step=0, ranks=0, shards="imported")
    write_sealed(target / STATE, state.model_dump(exclude_unset=True))
    (run / "checkpoints" / LATEST).write_text(NAME + "\n")
    write_config(run / "config.yaml", config)
