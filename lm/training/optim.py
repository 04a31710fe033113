"""Optimisers, the learning rate as a pure function of the step, float32 masters of bf16 weights."""

import copy
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import OptimConfig
from lm.sparse.powerprop import PowerAdamW, PowerLinear, power_group
from lm.sparse.sparse_config import PowerConfig
from lm.sparse.sparse_linear import SparseLinear

STABLE = 5
"""One step in so many belongs to the decay of wsd, unless optim.decay says otherwise."""


def lr_scale(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of a step as a share of the peak.

    Linear warm-up, then a cosine (papers) or the peak and at the end a straight line to the floor
    (wsd; Hu et al., arXiv 2404.06395).

    Args:
        config: the schedule.
        step: 0 for the first optimiser step.
        steps: number of steps of the run.
    """
    floor = config.floor / config.lr
    if step < config.warmup:
        return floor + (1 - floor) * (step + 1) / config.warmup
    rest = max(1, steps - config.warmup)
    if config.schedule == "wsd":
        decay = min(rest, max(1, steps // STABLE) if config.decay is None else config.decay)
        return floor + (1 - floor) * min(1.0, max(0, steps - step) / decay)
    decay = rest if config.decay is None else config.decay
    progress = min(1.0, (step - config.warmup) / decay)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_lr(optimizer: torch.optim.Optimizer, scale: float) -> None:
    """Set every group's learning rate to this share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * scale


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser of a model; groups carry their peak rate as `peak_lr`."""
    groups = _groups(model, config)
    kind: type[torch.optim.AdamW] = Muon if config.name == "muon" else torch.optim.AdamW
    if any("power" in group for group in groups):
        kind = PowerAdamW
    return kind(groups, betas=config.betas, eps=config.eps, fused=True)


class Muon(torch.optim.AdamW):
    """AdamW, but for the groups with a `momentum`, whose matrices move by orthogonal steps.

    The momentum of a matrix, with the gradient ahead of it (Nesterov), is made nearly orthogonal
    (Jordan et al. 2024). torch.optim.Muon and DeepSpeed's do that in half precision, which a CPU
    without instructions for it emulates: sixteen times the time on the quick start's model.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move all parameters that have a gradient, and forget the gradients of the matrices."""
        for group in self.param_groups:
            for parameter in group["params"] if "momentum" in group else ():
                if parameter.grad is not None:
                    self._move(parameter, group)
                    # Nothing is left for AdamW to do.
                    parameter.grad = None
        return super().step(closure)

    def _move(self, parameter: nn.Parameter, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        rows, columns = parameter.shape
        step = orthogonal(gradient.lerp(momentum, group["momentum"]))
        step *= math.sqrt(max(1.0, rows / columns))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(step, alpha=-group["lr"])


QUINTIC = (3.4445, -4.7750, 2.0315)
"""a, b, c: five times x -> a x + b x^3 + c x^5 takes singular values to about 1."""
ROUNDS = (2, 3)
"""Iterations on one Gram matrix, which is then computed anew against rounding."""


def orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with its singular vectors, and values near 1, by Newton and Schulz's iteration.

    Of a matrix that is not square only the small Gram matrix is iterated on, which holds the same
    polynomial of it. On a CPU in float32, where half precision may be emulated, else in float16;
    but on a CPU that multiplies bfloat16 in hardware in that, and then the matrix itself is
    iterated on, since a Gram matrix loses too much in eight bits.
    """
    a, b, c = QUINTIC
    wide = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / (wide.norm() + 1e-7)
    coarse = wide.device.type == "cpu" and multiplies_bfloat16()
    if coarse:
        wide = wide.bfloat16()
    elif wide.device.type != "cpu":
        wide = wide.half()
    for iterations in ROUNDS:
        if coarse or wide.shape[0] == wide.shape[1]:
            for _ in range(iterations):
                gram = wide @ wide.mT
                step = torch.addmm(gram, gram, gram, beta=b, alpha=c)
                wide = torch.addmm(wide, step, wide, beta=a)
        else:
            wide = gram_polynomial(wide @ wide.mT, iterations) @ wide
    return (wide.mT if matrix.shape[0] > matrix.shape[1] else wide).to(matrix.dtype)


@cache
def multiplies_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16: of vectors (AVX512), twice as
    fast as float32, or of tiles (AMX), four to eight times. Without them they are emulated.
    """
    capabilities: dict[str, object] = getattr(
        torch.cpu, "get_capabilities", dict
    )()  # from torch 2.12 on
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def gram_polynomial(gram: Tensor, iterations: int) -> Tensor:
    """What so many iterations multiply a matrix X by from the left.

    Args:
        gram: X times its transpose.
        iterations: at least 1.
    """
    a, b, c = QUINTIC
    whole = None
    for left in reversed(range(iterations)):
        step = b * gram + c * gram @ gram
        if whole is None:
            whole = step.clone()
            whole.diagonal().add_(a)
        else:
            whole = a * whole + step @ whole
        if left:
            gram = a * gram + step @ gram
            gram = a * gram + step @ gram
    assert whole is not None
    return whole


def clip_gradients(module: nn.Module, limit: float) -> Tensor:
    """Bound the global norm of the gradients; returns the norm before.

    A norm that is not finite is returned with the gradients as they are.
    """
    parameters = [p for p in module.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.isfinite():
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameter groups of what learns: hidden matrices, those of them that are powers of their
    parameters, other matrices, vectors. Empty groups are left out.
    """
    sparse, powers = _reparameterised(model)
    hidden, powered, matrices, vectors = [], [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
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
        first = {"lr": config.muon_lr, "peak_lr": config.muon_lr, "momentum": 0.95}
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
        every = zip(self.module.parameters(), model.parameters(), strict=True)
        self.pairs = [pair for pair in every if pair[0].requires_grad]

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
