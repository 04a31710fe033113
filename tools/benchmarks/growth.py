"""Growth: step time and memory against the history that a layer sees, as a figure.

History is n_m + c n_cm tokens a layer with compressed memory and n_m without.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from torch import Tensor

from data.common.outputs import check_output
from data.common.schema import Count, Size
from eval.figures import check_kind, save
from lm.model.model_config import ModelConfig
from tools.benchmarks.building import SMALL, new_model, random_batches, random_step
from tools.benchmarks.timing import core_clock, machine, pick_device, report, take_turns

mpl.use("Agg")

from matplotlib import pyplot as plt

MIB = 2**20


def main(
    model: ModelConfig = SMALL,
    lanes: Size = 4,
    compressed: list[Count] | None = None,
    rounds: Size = 5,
    device: str = "auto",
    json: Path | None = None,
    out: Path = Path("docs/growth.png"),
) -> None:
    """Measure the training step with more and more compressed memory, and with as much history in
    ordinary memory, and draw both.

    Args:
        model: shape of the model; its memory stays as it is where there is compressed memory.
        lanes: segments read side by side.
        compressed: numbers of compressed slots; by default 0 to 512.
        rounds: steps that are timed.
        device: cpu, cuda, or auto for the GPU where there is one.
        json: file for the numbers.
        out: file of the figure.
    """
    check_output(json)
    check_kind(out)
    check_output(out, json)
    place = pick_device(device)
    shapes: dict[str, ModelConfig] = {}
    for slots in compressed or [0, 64, 128, 256, 512]:
        shapes[f"compressed {slots}"] = replace(model, compressed=slots)
        history = model.memory + model.rate * slots
        shapes[f"memory {history}"] = replace(model, memory=history, compressed=0)
    steps = {
        name: random_step(new_model(shape, device=place), lanes) for name, shape in shapes.items()
    }
    taken = take_turns(steps, place, rounds, clock=core_clock(place))
    points = [
        {
            "kind": "compressed" if shape.compressed or shape.memory == model.memory else "memory",
            "history": shape.memory + shape.rate * shape.compressed,
            "slots": shape.slots,
            "step_milliseconds": taken[name] * 1e3,
            "state_mib_per_lane": state_bytes(shape) / MIB,
            "saved_mib_per_lane": saved_bytes(shape, lanes, place) / lanes / MIB,
        }
        for name, shape in shapes.items()
    ]
    draw(points, model, out)
    report({"points": points, "figure": str(out)} | machine(place), json)


def state_bytes(config: ModelConfig) -> int:
    """Bytes of one lane's memory."""
    memory = new_model(config).empty_memory(1)
    return sum(tensor.nbytes for tensor in memory.tensors().values())


def saved_bytes(config: ModelConfig, lanes: int, device: torch.device) -> int:
    """Bytes that one forward pass saves for the backward pass beside weights."""
    model = new_model(config, device=device)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
            # So that no later tensor has its address.
            kept.append(tensor)
        return tensor

    inputs, targets, *_ = random_batches(config, lanes, device=device)()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(inputs, model.empty_memory(lanes), targets)
    return sum(sizes.values())


def draw(points: list[dict[str, Any]], model: ModelConfig, out: Path) -> None:
    """Two panels: step time, and memory of one lane."""
    figure, (time, size) = plt.subplots(1, 2, figsize=(9, 3.4))
    labels = {
        "compressed": f"compressed memory, c = {model.rate}",
        "memory": "ordinary memory (Transformer-XL)",
    }
    for kind, label in labels.items():
        line = [point for point in points if point["kind"] == kind]
        first = [point for point in points if point["history"] == model.memory][:1]
        line = sorted([*line, *(first if kind == "memory" else [])], key=lambda p: p["history"])
        history = [point["history"] for point in line]
        time.plot(history, [point["step_milliseconds"] for point in line], "o-", label=label)
        size.plot(history, [point["saved_mib_per_lane"] for point in line], "o-", label=label)
        color = size.lines[-1].get_color()
        state = [point["state_mib_per_lane"] for point in line]
        size.plot(history, state, "s--", color=color, label=f"{label}: state alone")
    time.set_ylabel("training step, milliseconds of one core")
    size.set_ylabel("memory of one lane in training, MiB")
    for axes in (time, size):
        axes.set_xlabel("history that a layer sees, tokens")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    size.legend(fontsize=7)
    figure.tight_layout()
    save(figure, out, dpi=100)
