"""Sparse matrices: memory by what it is for, and time against dense ones.

Memory is counted from tensors that are alive after a training step, and as the peak of a process;
time is that of one matrix and of a model's whole step, dense and sparse taking turns.
"""

import json as json_format
import resource
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data.common.outputs import check_output
from data.common.schema import Size
from lm.model.components import Linear, LinearMap
from lm.model.model_config import ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.sparse.layout import Layout
from lm.sparse.routes import measured, take
from lm.sparse.sparse_config import Granularity, PowerConfig, SparseConfig
from lm.sparse.sparse_linear import SparseLinear
from lm.sparse.topkast import TopKast, kind_of, sparsify
from tools.benchmarks.building import CPU, new_model, random_step
from tools.benchmarks.timing import core_clock, machine, report, take_turns

WIDE = ModelConfig(
    layers=2, width=768, heads=8, feedforward=3072, segment=16, memory=16, compressed=4, rate=4
)
"""Weights outweigh activations."""
MIDDLE = ModelConfig(
    layers=2, width=512, heads=8, feedforward=2048, segment=128, memory=128, compressed=32, rate=4
)
SHARES = ((0.5, 0.5), (0.2, 0.5), (0.2, 0.2), (0.1, 0.2), (0.05, 0.1))
"""Of the forward and the backward set, for memory."""
FAST_SHARES = ((0.2, 0.2), (0.1, 0.2), (0.05, 0.1), (0.02, 0.05))
"""The same for time."""
FORMS: dict[str, tuple[Granularity, int]] = {
    "single weights": ("unstructured", 1),
    "blocks 32x32": ("block", 32),
    "blocks 64x64": ("block", 64),
}


def main(
    part: str = "all",
    tokens: Size = 1024,
    rounds: Size = 7,
    form: str | None = None,
    json: Path | None = None,
) -> None:
    """Measure sparse matrices on the CPU.

    Args:
        part: memory, matrix (time of one), step (time of a model's step), or all.
        tokens: that a product of the time tables has.
        rounds: timings, of which the median counts.
        form: make only this line of the memory table, such as "sparse 0.1/0.2"; the whole table
            calls this for each of its lines.
        json: file for the result.
    """
    check_output(json)
    if form is not None:
        print(json_format.dumps(memory_line(form)))
        return
    parts: dict[str, Callable[[], Any]] = {
        "memory": memory_table,
        "matrix": lambda: matrix_table(tokens, rounds),
        "step": lambda: step_table(rounds),
    }
    if part != "all" and part not in parts:
        raise ValueError(f"part must be all or one of {', '.join(parts)}, not {part}")
    result = {name: table() for name, table in parts.items() if part in ("all", name)}
    report(result | machine(CPU), json)


class MaskedLinear(LinearMap):
    """How Top-KAST is usually simulated: a dense parameter, and masks of A and B."""

    def __init__(self, dense: Linear, density: float, backward: float) -> None:
        super().__init__()
        layout = Layout(dense.out_features, dense.in_features)
        index = layout.choose(
            dense.weight.detach().abs().flatten(),
            *layout.counts(density, backward - density),
            noise=None,
        ).long()
        self.weight, self.bias = dense.weight, dense.bias
        for name, numbers in (("a", index[: round(density * layout.units)]), ("b", index)):
            mask = torch.zeros(layout.units, dtype=torch.bool)
            mask[numbers] = True
            self.register_buffer(name, mask.view_as(self.weight))
        self.weight.register_hook(lambda gradient: gradient * self.get_buffer("b"))

    def matrix(self) -> Tensor:
        """The forward weights, with the gradient of all."""
        weight = self.weight
        return weight + (weight.detach() * self.get_buffer("a") - weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return F.linear(x, self.matrix(), self.bias)


MATRICES = (Linear, MaskedLinear, SparseLinear)


def built(form: str, config: ModelConfig) -> tuple[CompressiveTransformer, TopKast | None, int]:
    """A model with its matrices in a form, and how many weights they have.

    Args:
        form: dense, masked D/B, or sparse D/B.
        config: the model.

    Raises:
        ValueError: another form.
    """
    if form not in forms():
        raise ValueError(f"form must be one of {', '.join(forms())}, not {form}")
    model = new_model(config)
    found = [(name, m) for name, m in model.named_modules() if isinstance(m, Linear)]
    matrices = [(n, m) for n, m in found if kind_of(n) in ("attention", "feedforward")]
    weights = sum(matrix.weight.numel() for _, matrix in matrices)
    if form == "dense":
        return model, None, weights
    kind, _, shares = form.partition(" ")
    density, backward = map(float, shares.split("/"))
    if kind == "masked":
        for name, matrix in matrices:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, MaskedLinear(matrix, density, backward))
        return model, None, weights
    sparse = SparseConfig(density, backward - density)
    return model, sparsify(model, sparse, PowerConfig(), seed=0), weights


def forms() -> list[str]:
    """Lines of the memory table."""
    pairs = [f"{density}/{backward}" for density, backward in SHARES]
    return ["dense", *(f"{kind} {pair}" for kind in ("masked", "sparse") for pair in pairs)]


def memory_table() -> list[dict[str, Any]]:
    """A line for each form, from a process of its own, whose peak is the form's."""
    lines = []
    for form in forms():
        command = [sys.executable, "-m", "tools.bench", "sparse", "--form", form]
        done = subprocess.run(
            command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True
        )
        lines.append(json_format.loads(done.stdout))
    return lines


def memory_line(form: str) -> dict[str, Any]:
    """Bytes for each weight of the matrices that may be sparse, after some steps of training and a
    refresh, and the peak of this process.
    """
    model, topkast, weights = built(form, WIDE)
    step = random_step(model, lanes=1)
    for _ in range(3):
        step()
    if topkast is not None:
        topkast.refresh(100, _Plain(model, step.optimizer))
    step()
    own = matrices_of(model)
    device: dict[str, list[Tensor]] = {
        "parameters": [*own],
        "gradients": [p.grad for p in own if p.grad is not None],
        "moments": [v for p in own for v in step.optimizer.state[p].values() if v.ndim],
        "places": [b for name, b in model.named_buffers() if kind_of(name)],
    }
    matrices = list(topkast.matrices.values()) if topkast else []
    host: dict[str, list[Tensor]] = {
        "reservoir": [m.reservoir for m in matrices],
        "bits": [bits.packed for m in matrices for bits in (m.ever, m.changed)],
    }
    line = {name: size(tensors) / weights for name, tensors in (device | host).items()}
    line["device"] = sum(line[name] for name in device)
    line["host"] = sum(line[name] for name in host)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    rounded = {name: round(value, 2) for name, value in line.items()}
    return {"form": form, **rounded, "peak MiB": peak}


def matrices_of(model: nn.Module) -> list[nn.Parameter]:
    """Parameters of the matrices that are sparse or might be."""
    return [
        next(module.parameters())
        for name, module in model.named_modules()
        if kind_of(name) in ("attention", "feedforward") and isinstance(module, MATRICES)
    ]


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages behind tensors, each counted once."""
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({s.data_ptr(): s.nbytes() for s in storages}.values())


class _Plain:
    """A store of plain torch, for lm.sparse.topkast."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.parameters, self.optimizer = dict(model.named_parameters()), optimizer

    def read(self, name: str) -> tuple[Tensor, dict[str, Tensor]]:
        """See Store."""
        state = self.optimizer.state[self.parameters[name]]
        moments = {entry: value for entry, value in state.items() if value.ndim}
        return self.parameters[name].detach(), moments

    def write(self, name: str, values: Tensor, moments: Any) -> None:
        """See Store."""
        self.parameters[name].data.copy_(values)
        for entry, moment in moments.items():
            self.optimizer.state[self.parameters[name]][entry].copy_(moment)


def matrix_table(tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Milliseconds and speed against dense of one linear map, 512 -> 2048."""
    dense = Linear(512, 2048)
    lines = []
    for form, (granularity, block) in FORMS.items():
        for density, backward in FAST_SHARES:
            layout = Layout(2048, 512, granularity, block)
            counts = layout.counts(density, backward - density)
            module = SparseLinear(layout, counts, dense.bias, (0.0, 0.0), PowerConfig())
            module.choose(layout.choose(torch.rand(layout.units), *counts, noise=None))
            nn.init.normal_(module.values)
            route = measured({"": module}, tokens, torch.float32)[""]
            take(module, route, torch.float32)
            times = take_turns(
                passes("dense", dense, tokens) | passes("sparse", module, tokens),
                CPU,
                rounds,
                clock=core_clock(CPU),
            )
            line: dict[str, Any] = {"form": form, "forward/backward": f"{density}/{backward}"}
            for name in ("forward", "backward", "both"):
                ours, theirs = times[f"sparse {name}"], times[f"dense {name}"]
                line[f"{name} ms"] = round(ours * 1e3, 2)
                line[f"{name} x"] = round(theirs / ours, 2)
            lines.append(line | {"route": route})
    return lines


def passes(name: str, module: nn.Module, tokens: int) -> dict[str, Callable[[], object]]:
    """Forward, backward and both passes of a linear map, by `name pass`."""
    x = torch.randn(tokens, 512, requires_grad=True)
    inputs = [x, *module.parameters()]
    y = module(x)
    up = torch.randn_like(y)
    return {
        f"{name} forward": lambda: module(x),
        f"{name} backward": lambda: torch.autograd.grad(y, inputs, up, retain_graph=True),
        f"{name} both": lambda: torch.autograd.grad(module(x), inputs, up),
    }


def step_table(rounds: int) -> list[dict[str, Any]]:
    """Milliseconds of a model's whole training step, and speed against the dense model."""
    lanes = 8
    steps = {"dense": random_step(new_model(MIDDLE), lanes)}
    routes: dict[str, str] = {}
    for form, (granularity, block) in FORMS.items():
        for density, backward in FAST_SHARES:
            sparse = SparseConfig(density, backward - density, granularity=granularity)
            if granularity == "block":
                sparse = replace(sparse, block=block)
            model = new_model(MIDDLE)
            topkast = sparsify(model, sparse, PowerConfig(), seed=0)
            modules = {name: matrix.module for name, matrix in topkast.matrices.items()}
            name = f"{form} {density}/{backward}"
            chosen = measured(modules, lanes * MIDDLE.segment, torch.float32)
            for key, module in modules.items():
                take(module, chosen[key], torch.float32)
            routes[name] = ", ".join(sorted(set(chosen.values())))
            steps[name] = random_step(model, lanes)
    times = take_turns(steps, CPU, rounds, clock=core_clock(CPU))
    return [
        {
            "form": name,
            "step ms": round(taken * 1e3, 1),
            "x": round(times["dense"] / taken, 2),
            "routes": routes.get(name, ""),
        }
        for name, taken in times.items()
    ]
