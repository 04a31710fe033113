"""A run's model as the one of transformers that it was adopted from: without memory, and of its own
shape, names and types.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from data.common.files import follow_umask, write_json
from data.common.integrity import read_sealed
from data.common.tensors import TensorFile
from data.tokenizers.registry import Tokenizer
from lm.hub.adopting import BASE_WEIGHTS
from lm.hub.importing import INDEX, ONE
from lm.hub.shapes import parts_of, rows_of
from lm.model.model_config import ModelConfig
from lm.runs.adopted_config import BASE, GENERATION
from lm.runs.checkpoints import open_weights

TAKE = "adopt the model again"
UNITS = {"TB": 10**12, "GB": 10**9, "MB": 10**6, "KB": 10**3} | {
    "TIB": 1 << 40,
    "GIB": 1 << 30,
    "MIB": 1 << 20,
    "KIB": 1 << 10,
}


def require_base(run: Path) -> None:
    """ValueError for a run whose weights are no model of transformers."""
    if not (run / BASE / BASE_WEIGHTS).is_file():
        raise ValueError(
            f"{run} was not adopted, so there is no plain model that it is; leave --plain out"
        )


def write_plain(
    run: Path,
    checkpoint: Path,
    config: ModelConfig,
    vocabulary: Tokenizer,
    folder: Path,
    max_shard_size: str,
) -> None:
    """Write weights, configuration and tokenizer into an existing folder.

    Weights that no training has moved are the bits that were adopted.

    Args:
        run: folder of the run.
        checkpoint: whose weights are written.
        config: of the run's model.
        vocabulary: of its tokens.
        folder: where to.
        max_shard_size: of one file, such as 5GB.

    Raises:
        ValueError: what the run knows of its base is damaged.
    """
    types = read_sealed(run / BASE / BASE_WEIGHTS, TAKE)
    values = read_sealed(run / BASE / "config.json", TAKE)
    if not isinstance(types, dict) or not isinstance(values, dict):
        raise ValueError(f"{run / BASE} does not describe a model; {TAKE}")  # noqa: TRY004
    write_json(folder / "config.json", values)
    vocabulary.save(folder)
    generation = run / BASE / GENERATION
    if generation.is_file():
        write_json(folder / generation.name, read_sealed(generation, TAKE))
    save_shards(
        plain_weights(open_weights(checkpoint), config, types), folder, bytes_of(max_shard_size)
    )


def plain_weights(
    stored: TensorFile, config: ModelConfig, types: dict[str, Any]
) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the plain model by their names, one after the other."""
    for ours, names in parts_of(config).items():
        rows = rows_of(config, ours)
        weight = stored[ours]
        parts = [weight] if rows is None else weight.split(rows)
        for name, part in zip(names, parts, strict=True):
            dtype = getattr(torch, str(types.get(name)), None)
            if not isinstance(dtype, torch.dtype):
                raise ValueError(  # noqa: TRY004
                    f"{BASE}/{BASE_WEIGHTS} of the run lacks {name}; {TAKE}"
                )
            yield name, part.to(dtype).contiguous().clone()


def save_shards(tensors: Iterator[tuple[str, Tensor]], folder: Path, most: int) -> None:
    """Write safetensors files of so many bytes at most, and the index of several, as transformers
    does.
    """
    files: list[Path] = []
    held: dict[str, Tensor] = {}
    places: dict[str, int] = {}
    total = size = 0

    def write() -> None:
        files.append(folder / f"part-{len(files)}")
        save_file(held, files[-1], {"format": "pt"})
        follow_umask(files[-1])
        held.clear()

    for name, tensor in tensors:
        own = tensor.numel() * tensor.element_size()
        if held and size + own > most:
            write()
            size = 0
        held[name], places[name] = tensor, len(files)
        size, total = size + own, total + own
    write()
    if len(files) == 1:
        files[0].rename(folder / ONE)
        return
    names = [f"model-{n + 1:05}-of-{len(files):05}.safetensors" for n in range(len(files))]
    for path, name in zip(files, names, strict=True):
        path.rename(folder / name)
    index = {
        "metadata": {"total_size": total},
        "weight_map": {name: names[place] for name, place in places.items()},
    }
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def bytes_of(size: str) -> int:
    """A size such as 500MB in bytes."""
    found = re.fullmatch(r"([0-9]+)([A-Z]+)", size.upper())
    assert found is not None
    return int(found[1]) * UNITS[found[2]]
