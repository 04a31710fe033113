"""The config.yaml of a run that no training made: a model, and where its weights come from.

Beside it lies `base/`, which knows the model that was adopted as its own library does: config.json
as it was, and weights.json with the name and type of every tensor, so that it can be written again.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.common.schema import Count, Size
from data.common.values import require_ranges
from data.common.yamlfile import read_yaml
from lm.model.model_config import CompressionName, ModelConfig
from lm.runs.run_config import RunConfig, read_as
from lm.sparse.sparse_config import PowerConfig, SparseConfig

BASE = "base"
"""Folder in a run's: what is known of the model that it was adopted from."""
GENERATION = "generation_config.json"
"""File in it, where the model had one: how it is sampled."""


@dataclass(frozen=True)
class MemoryShape:
    """What an adopted model gets that it did not have; lengths in tokens or slots, per layer."""

    segment: Size = 512
    """Tokens that are read at once."""
    memory: Count = 512
    """Slots of ordinary memory in each layer."""
    compressed: Count = 512
    """Slots of compressed memory in each layer; 0: none."""
    rate: Size = 4
    """Old memory slots that become one compressed slot."""
    sinks: Count = 4
    """First tokens of a text that stay visible for ever, on which such models rest their attention
    (Xiao et al., arXiv 2309.17453)."""
    function: CompressionName = "most_used"
    """Compression function. most_used keeps the slots that were attended to most, and reads best
    where nothing was trained; conv begins as the mean and may be trained."""
    memory_layers: tuple[Count, ...] | None = None
    """Layers, counted from 0, that have memory; the others read their segment only. None: all."""
    positions: Literal["rotary", "rotary_slots"] = "rotary"
    """Where compressed slots stand. rotary: at the centre of the tokens they were made from;
    rotary_slots: each counts as one token, which reaches less far beyond trained positions."""
    proportional: bool | None = None
    """Whether a compressed slot weighs as many tokens in attention as were merged into it; none:
    yes, where the function merges (most_used keeps single slots)."""

    def __post_init__(self) -> None:
        require_ranges(self)

    @property
    def reach(self) -> int:
        """Positions that a query and what it sees are apart at most."""
        span = self.rate if self.positions == "rotary" else 1
        return self.segment + self.memory + span * self.compressed + self.sinks


@dataclass(frozen=True)
class BaseConfig:
    """The model that a run was adopted from."""

    name: str
    """Its name on the hub, or of its folder or file."""
    architecture: str
    """Its class in transformers, such as LlamaForCausalLM."""
    positions: int
    """Tokens of context that it was made for."""


@dataclass(frozen=True)
class AdoptedConfig:
    """All that config.yaml holds of a run that was adopted: nothing of data or training."""

    model: ModelConfig
    base: BaseConfig

    @property
    def sparse(self) -> SparseConfig:
        """Its matrices are dense."""
        return SparseConfig()

    @property
    def power(self) -> PowerConfig:
        """Its weights are parameters as they are."""
        return PowerConfig()


StoredConfig = RunConfig | AdoptedConfig
"""What the config.yaml of a run may hold."""


def read_stored(path: Path) -> StoredConfig:
    """Read the config.yaml of a run that was trained, or of one that was adopted; errors as of
    `read_as`.
    """
    return read_as(AdoptedConfig, path) if is_adopted(path) else read_as(RunConfig, path)


def is_adopted(path: Path) -> bool:
    """Whether a config.yaml, which may be damaged, is that of a run that was adopted."""
    try:
        values = read_yaml(path)
    except ValueError:
        return False
    return isinstance(values, dict) and "base" in values and "training" not in values


def copy_base(source: Path, run: Path) -> None:
    """Hand on what a run or an exported folder knows of the model that it was adopted from, if it
    was, to a folder that goes on with its weights.
    """
    if (source / BASE).is_dir():
        shutil.copytree(source / BASE, run / BASE, dirs_exist_ok=True)
