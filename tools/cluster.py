"""Machines that a run is planned for, and what is asked of a plan."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from lm.model.model_config import ModelConfig

LEAST, MOST = 1e-6, 1e12
"""Bounds of a cluster's figures, beyond which no machine is."""


@dataclass(frozen=True)
class Cluster:
    """Machines that a run is planned for; rates are per second, links in one direction."""

    nodes: int = 1
    """Machines."""
    gpus: int = 8
    """GPUs of a machine."""
    memory: float = 80.0
    """Memory of a GPU in GiB."""
    tflops: float = 989.0
    """Matrix rate of a GPU in TFLOP/s (datasheet: H100 SXM, bf16)."""
    efficiency: float = 0.4
    """Share of that rate that training reaches; tools/bench.py gpu measures it."""
    inside: float = 450.0
    """Link between the GPUs of a machine in GB/s (datasheet: NVLink 4)."""
    between: float = 400.0
    """Network of a machine in GB/s (eight adapters of 400 Gbit/s)."""
    host: float = 50.0
    """Link of a GPU to its host's memory in GB/s (PCIe 5)."""
    storage: float = 5.0
    """Rate at which checkpoints are written in GB/s."""
    failure_hours: float = 5000.0
    """Mean time between failures of one machine in hours."""
    restart_minutes: float = 10.0
    """Time from a failure until training goes on."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be positive, not {value}")
            if not LEAST <= value <= MOST:
                raise ValueError(f"{name} must be {LEAST:g} to {MOST:g}, not {value:g}")
        if self.efficiency > 1:
            raise ValueError(f"efficiency is a share, at most 1, not {self.efficiency}")

    @property
    def ranks(self) -> int:
        """GPUs of all machines."""
        return self.nodes * self.gpus


@dataclass(frozen=True)
class PlanConfig:
    """What is asked of a plan."""

    shape: str | None = None
    """A pretrained model to plan with: smollm2-135m, llama-1b (3.2), llama-8b (3.1), or the folder
    of one, whose config.json is read; the model's section then gives lengths and compression."""
    vocabulary: int = 256
    """Number of different tokens; that of a shape is known."""
    budget: float = 1e9
    """Tokens that are to be read."""
    nodes: tuple[int, ...] = ()
    """Numbers of machines to plan for instead of cluster.nodes, as '[1, 8, 32]'."""
    shards: Path | None = None
    """Shards whose documents are dealt out to the lanes, to see how even that is."""
    json: Path | None = None
    """File for the plans."""

    def __post_init__(self) -> None:
        if self.vocabulary < 1 or self.budget <= 0 or any(count < 1 for count in self.nodes):
            raise ValueError("vocabulary, budget and every number of nodes must be positive")
        if self.shape is not None and self.vocabulary != PlanConfig.vocabulary:
            raise ValueError(f"vocabulary has no effect with shape {self.shape}: leave it out")


LLAMA3: dict[str, Any] = {
    "heads": 32,
    "key_value_heads": 8,
    "rotary_base": 500_000.0,
    "rotary_scaling": "llama3",
    "rotary_trained": 8192,
    "max_positions": 131_072,
}
SHAPES: dict[str, tuple[int, dict[str, Any]]] = {
    "smollm2-135m": (
        49_152,
        {
            "layers": 30,
            "width": 576,
            "heads": 9,
            "key_value_heads": 3,
            "feedforward": 1536,
            "rotary_base": 100_000.0,
            "max_positions": 8192,
        },
    ),
    "llama-1b": (
        128_256,
        LLAMA3 | {"layers": 16, "width": 2048, "feedforward": 8192, "rotary_factor": 32.0},
    ),
    "llama-8b": (
        128_256,
        LLAMA3
        | {"layers": 32, "width": 4096, "feedforward": 14_336, "rotary_factor": 8.0}
        | {"tied": False},
    ),
}
"""Trained models: size of the vocabulary, and what their config.json says."""


def shaped(name: str, model: ModelConfig) -> tuple[int, ModelConfig]:
    """A pretrained model with the memory of another; size of its vocabulary, and its config.

    Raises:
        ValueError: it is not known, or of another kind, or memory reaches beyond its positions.
    """
    positions = "rotary" if model.positions == "relative" else model.positions
    if name not in SHAPES:
        return _read(name, model, positions)
    from lm.model.compression import adopted_rank

    vocabulary, settings = SHAPES[name]
    if model.compressed and model.compression == "conv":
        rank = adopted_rank(settings["width"], model.rate)
        settings = settings | {"compression_initial": "mean", "compression_rank": rank}
    return vocabulary, replace(
        model,
        positions=positions,
        norm_kind="rms",
        activation="swiglu",
        feedforward_bias=False,
        head_bias=False,
        embedding_scale=1.0,
        **settings,
    )


def _read(
    name: str, model: ModelConfig, positions: Literal["rotary", "rotary_slots"]
) -> tuple[int, ModelConfig]:
    """The same from a folder of transformers."""
    from lm.hub.shapes import model_config, read_base
    from lm.runs.adopted_config import MemoryShape

    path = Path(name)
    if not path.exists():
        known = ", ".join(SHAPES)
        raise ValueError(f"shape must be {known}, or the folder of a model, not {name}")
    lengths = {n: getattr(model, n) for n in ("segment", "memory", "compressed", "rate", "sinks")}
    memory = MemoryShape(
        **lengths,
        function=model.compression,
        memory_layers=model.memory_layers,
        positions=positions,
    )
    base = read_base(path if path.is_dir() else path.parent)
    return int(base.vocab_size), model_config(base, memory, name)
