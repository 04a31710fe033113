"""Optimisers, and the learning rate as a pure function of the step."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from lm.sparse.config import PowerConfig
from lm.sparse.linear import SparseLinear
from lm.sparse.optimizer import PowerAdamW, power_group
from lm.sparse.powerprop import PowerLinear


@dataclass(frozen=True)
class OptimConfig:
    """How weights move. Defaults are the paper's for characters (section 4, appendix B)."""

    name: Literal["adamw", "muon"] = "adamw"
    """adamw for every parameter, or muon for the hidden matrices and adamw for the rest."""
    lr: float = 3e-4
    """Peak learning rate of adamw."""
    muon_lr: float | None = None
    """Peak learning rate of muon; must be given with it and only then."""
    floor: float = 1e-6
    """Learning rate of adamw before the warm-up and after the decay; muon's is in proportion."""
    warmup: int = 4000
    """Steps of linear warm-up."""
    decay: int | None = None
    """Steps of cosine decay after the warm-up; none: until the last step, wherever that is."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of adamw's moments."""
    eps: float = 1e-8
    """What adamw adds to the root of the second moment; weights whose gradients are smaller hardly
    move."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices (norms and biases have none)."""
    clip: float = 0.1
    """Largest global norm of the gradient."""

    def __post_init__(self) -> None:
        if (self.muon_lr is not None) != (self.name == "muon"):
            raise ValueError("optim.muon_lr must be given with optim.name muon, and only then")
        if not 0 <= self.floor <= self.lr or self.lr <= 0:
            raise ValueError("optim.lr must be positive and optim.floor between 0 and optim.lr")
        if self.muon_lr is not None and self.muon_lr <= 0:
            raise ValueError("optim.muon_lr must be positive")
        if self.warmup < 0 or (self.decay is not None and self.decay < 1):
            raise ValueError("optim.warmup must be at least 0 and optim.decay at least 1")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("optim.betas must each be at least 0 and below 1")
        if self.weight_decay < 0 or self.clip <= 0 or self.eps <= 0:
            raise ValueError(
                "optim.weight_decay must be at least 0, and optim.clip and optim.eps positive"
            )


def lr_scale(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of a step as a share of the peak (papers: linear warm-up, cosine decay).

    Args:
        config: the schedule.
        step: 0 for the first optimiser step.
        steps: number of steps of the run.
    """
    floor = config.floor / config.lr
    if step < config.warmup:
        return floor + (1 - floor) * (step + 1) / config.warmup
    decay = max(1, steps - config.warmup) if config.decay is None else config.decay
    progress = min(1.0, (step - config.warmup) / decay)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set every group's learning rate to this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a model; groups carry their peak rate as `peak_lr`."""
    groups = _groups(model, config)
    if config.name == "adamw":
        kind = PowerAdamW if any("power" in group for group in groups) else torch.optim.AdamW
        return kind(groups, betas=config.betas, eps=config.eps, fused=True)
    # Imported on use because it loads DeepSpeed's kernels.
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    class Muon(MuonWithAuxAdam):
        """DeepSpeed's optimiser without its compilation, which needs a C++ compiler."""

        def step(self, closure: Any = None, step_id: Any = None) -> Any:
            with torch.compiler.set_stance("force_eager"), _float32_on_cpu():
                return super().step(closure, step_id)

    adam = partial(torch.optim.AdamW, betas=config.betas, eps=config.eps, fused=True)
    return Muon(groups, adam_optimizer=adam)


@contextmanager
def _float32_on_cpu() -> Iterator[None]:
    """Let Muon orthogonalise in float32 on CPUs.

    DeepSpeed takes a half precision there, which is slower for matrices of this size where the
    processor has instructions for it, and emulated at a crawl where it has none.
    """
    from deepspeed.runtime.zero.muon import original_muon

    if torch.cuda.is_available():
        yield
        return
    usual = original_muon.ns_compute_dtype
    original_muon.ns_compute_dtype = lambda _: torch.float32
    try:
        yield
    finally:
        original_muon.ns_compute_dtype = usual


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups: hidden matrices, those of them that are powers of their parameters, other
    matrices, vectors. Empty groups are left out.
    """
    sparse, powers = _reparameterised(model)
    hidden, powered, matrices, vectors = [], [], [], []
    for name, parameter in model.named_parameters():
        if name in powers:
            powered.append(parameter)
        elif name in sparse:
            hidden.append(parameter)
        elif parameter.ndim < 2 or name.endswith("bias"):
            vectors.append(parameter)
        elif name.startswith("blocks."):
            hidden.append(parameter)
        else:
            matrices.append(parameter)
    decay = config.weight_decay
    adam: dict[str, Any] = {"lr": config.lr, "peak_lr": config.lr}
    first = adam
    if config.name == "muon":
        adam |= {"use_muon": False, "betas": config.betas, "eps": config.eps}
        first = {"lr": config.muon_lr, "peak_lr": config.muon_lr, "use_muon": True}
        first |= {"momentum": 0.95, "ns_method": "gram"}
    groups: list[dict[str, Any]] = [
        {**first, "params": hidden, "weight_decay": decay},
        {**adam, "params": matrices, "weight_decay": decay},
        *(
            power_group({**adam, "params": powered, "weight_decay": decay}, power)
            for power in set(powers.values())
        ),
        {**adam, "params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _reparameterised(model: nn.Module) -> tuple[set[str], dict[str, PowerConfig]]:
    """Names of the vectors that are sparse matrices, and of the parameters that have a power."""
    sparse, powers = set(), {}
    for name, module in model.named_modules():
        if isinstance(module, SparseLinear):
            sparse.add(f"{name}.values")
            if module.power.alpha > 1:
                powers[f"{name}.values"] = module.power
        elif isinstance(module, PowerLinear):
            powers[f"{name}.weight"] = module.config
    return sparse, powers
