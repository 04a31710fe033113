"""Beginning from the weights of another run: what is taken over, and what the new run records.

origin.json in the new run's folder says where its weights come from. Once the run has a checkpoint,
the other one is not needed any more.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field

from data.common.files import hash_file
from data.common.integrity import write_sealed
from data.common.schema import Record, read_record
from data.common.tensors import TensorFile
from data.tokenizers.registry import description_of
from lm.inference.loading import find_weights
from lm.model.transformer import CompressiveTransformer
from lm.runs import checkpoints
from lm.runs.run_config import RunConfig, RunFolder

ORIGIN = "origin.json"
MEND = "put back the file as it was"
MAY_DIFFER = (
    *("segment", "memory", "memories", "memory_layers", "compressed", "rate", "compression"),
    *("extra_kernel", "compression_initial", "compression_rank", "reconstruction", "sinks", "sink"),
    "proportional_attention",
    *("empty", "dropout", "attention_dropout", "head_chunk", "backend", "max_positions"),
    *("rotary_base", "rotary_scaling", "rotary_factor", "rotary_trained", "rotary_bounds"),
)
"""Settings of the model that weights know nothing of, or only those that they come without."""


class OriginRecord(Record):
    """origin.json."""

    run: str
    """Folder of the run that the weights are of."""
    checkpoint: str
    weights: str
    """SHA-256 of the file of its weights."""
    initialised: list[str] = Field(default_factory=list)
    """Weights that it did not have, which began as in any new run."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Settings of the model that are otherwise than there."""


@dataclass(frozen=True)
class Origin:
    """Weights to begin with."""

    run: Path
    folder: Path
    """The checkpoint."""
    changes: dict[str, tuple[Any, Any]]
    """Settings of the model that are not as they were: new and old value."""


def find_origin(at: RunFolder, config: RunConfig, vocabulary: str) -> Origin | None:
    """Where a new run's weights come from; None if from nowhere.

    Args:
        at: names the other run, if any.
        config: of the new run.
        vocabulary: hash of the new run's.

    Raises:
        ValueError: there is no such run, or its weights are for another model or vocabulary.
    """
    if at.from_ is None:
        if at.from_checkpoint is not None:
            raise ValueError("--from-checkpoint belongs to a run; name it with --from")
        return None
    stored, folder = find_weights(at.from_, at.from_checkpoint)
    for new in (config, stored):
        if new.sparse.density is not None or new.power.alpha != 1:
            whose = "this run" if new is config else str(at.from_)
            raise ValueError(
                f"--from takes dense weights and gives them to dense matrices, but {whose} has "
                "sparse matrices or powers: leave --from, or sparse and power, out"
            )
    if description_of(at.from_ / "vocabulary").hash != vocabulary:
        raise ValueError(
            f"{at.from_} has another vocabulary than {config.data.shards}: prepare the text with "
            f"that of the run, --data.vocabulary_from {at.from_}"
        )
    old, new_model = asdict(stored.model), asdict(config.model)
    changes = {name: (new_model[name], old[name]) for name in old if new_model[name] != old[name]}
    for name, (now, before) in changes.items():
        turned = name == "positions" and {now, before} <= {"rotary", "rotary_slots"}
        if name not in MAY_DIFFER and not turned:
            raise ValueError(
                f"the weights of {at.from_} are for model.{name} {before}, not {now}: leave it out"
            )
    return Origin(at.from_, folder, changes)


def take_weights(model: CompressiveTransformer, origin: Origin) -> OriginRecord:
    """Fill a new model with the weights that it is to begin with.

    Weights of compression functions and the like that the other run does not have, or has of
    another shape, stay as they were initialised.

    Raises:
        ValueError: weights are damaged or of another model.
    """
    path, file = origin.folder / checkpoints.WEIGHTS, checkpoints.open_weights(origin.folder)
    parameters = dict(model.named_parameters())
    new = [name for name, weight in parameters.items() if not _fits(file, name, weight.shape)]
    if not origin.changes and (new or set(file) - parameters.keys()):
        names = ", ".join(new[:1] or sorted(set(file) - parameters.keys())[:1])
        raise ValueError(f"{path} holds weights of another model than its run's config: {names}")
    checkpoints.fill(parameters.keys() - {*new}, parameters, file)
    return OriginRecord(
        run=str(origin.run),
        checkpoint=origin.folder.name,
        weights=hash_file(path),
        initialised=new,
        model={name: now for name, (now, _) in origin.changes.items()},
    )


def _fits(file: TensorFile, name: str, shape: torch.Size) -> bool:
    return name in file and file.shape(name) == tuple(shape)


def spoken(record: OriginRecord) -> str:
    """What there is to say of a run that begins with another's weights."""
    line = f"begin with the weights of {record.run}, {record.checkpoint}"
    if record.model:
        said = (f"model.{name} {value}" for name, value in record.model.items())
        line += f", with {', '.join(said)}"
    if record.initialised:
        kinds = sorted({_place(name) for name in record.initialised})
        line += f"; {', '.join(kinds)} begin as initialised ({len(record.initialised)} weights)"
    return line


def _place(name: str) -> str:
    """Which part of a layer a weight belongs to."""
    parts = [part for part in name.split(".") if not part.isdigit() and part != "blocks"]
    return parts[0] if len(parts) == 1 else ".".join(parts[:-1])


def write_origin(run: Path, record: OriginRecord) -> None:
    """Write origin.json."""
    write_sealed(run / ORIGIN, record.model_dump())


def require_same_origin(at: RunFolder) -> None:
    """ValueError if a run that goes on is said to begin with other weights than it did.

    The run that they are of may be gone.
    """
    if at.from_ is None:
        return
    path = at.run / ORIGIN
    if not path.is_file():
        raise ValueError(
            f"{at.run} holds a run that began with no other's weights: leave --from out, or give "
            "a new --run folder"
        )
    record = read_record(OriginRecord, path, MEND)
    named = at.from_checkpoint in (None, record.checkpoint)
    if Path(record.run).absolute() != at.from_.absolute() or not named:
        raise ValueError(
            f"{at.run} holds a run that began with the weights of {record.run}, "
            f"{record.checkpoint}: name these, leave --from out, or give a new --run folder"
        )
