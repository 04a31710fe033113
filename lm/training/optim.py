"""Optimisers, the learning rate as a pure function of the step, float32 masters of bf16 weights."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import OptimConfig
from lm.sparse.powerprop import PowerAdamW, PowerLinear, power_group
from lm.sparse.sparse_config import PowerConfig
from lm.sparse.sparse_linear import SparseLinear


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


class Masters:
    """A float32 copy of a model that the optimiser moves, while the model itself becomes bf16.

    The arithmetic is that of DeepSpeed's bf16 from stage 1 on, so a run may change its stage.
    """

    def __init__(self, model: CompressiveTransformer) -> None:
        self.module = copy.deepcopy(model)
        for part in self.module.modules():
            # Which weights a sparse matrix has is the model's affair; a copy would go stale.
            part._buffers.clear()
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
        self.pairs = list(zip(self.module.parameters(), model.parameters(), strict=True))

    def take_gradients(self) -> None:
        """Give the masters the model's gradients, in float32."""
        for master, parameter in self.pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()

    @torch.no_grad()
    def give_weights(self) -> None:
        """Round the masters to the model's weights; their gradients are done with."""
        for master, parameter in self.pairs:
            parameter.copy_(master)
            master.grad = None
