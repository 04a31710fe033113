"""Backends of attention: time of a model's step and of its scoring by each, beside the shift's.

Each pair has the same weights and gives the same numbers but for rounding. Few sinusoids make
another model, so the fused backend stands beside the shift of that one. Rotary attention has but
one backend, which stands beside the plain way that steps in where weights are wanted.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.common.command import load_config
from data.common.outputs import check_output
from data.common.schema import Size
from lm.model.model_config import Backend, ModelConfig
from lm.model.transformer import CompressiveTransformer
from lm.objectives.objective import segment_loss
from lm.runs.run_config import RunConfig
from tools.benchmarks.building import CONFIGS, filled, new_model, random_batches
from tools.benchmarks.timing import core_clock, machine, pick_device, report, take_turns

LARGER = ModelConfig(layers=2, segment=256, memory=256, compressed=256)
SINUSOIDS = 64


def main(rounds: Size = 9, device: str = "auto", json: Path | None = None) -> None:
    """Time the quick start's model with 32 lanes and a larger one with 4, on random bytes.

    Args:
        rounds: steps of each that are timed.
        device: cpu, cuda, or auto for the GPU where there is one.
        json: file for the result.
    """
    check_output(json)
    place = pick_device(device)
    quick = load_config(RunConfig, CONFIGS / "quickstart.yaml")
    shapes = {"quick start": (quick.model, quick.training.lanes), "larger": (LARGER, 4)}
    result = {name: compared(*shape, place, rounds) for name, shape in shapes.items()}
    report(result | machine(place), json)


def compared(
    config: ModelConfig, lanes: int, device: torch.device, rounds: int
) -> dict[str, dict[str, float]]:
    """Milliseconds of each backend's step and scoring, and their ratio to the shift's."""
    few = replace(config, sinusoids=SINUSOIDS, dropout=0.0)
    pairs: dict[str, list[tuple[ModelConfig, Backend | None]]] = {
        "fused": [(few, "shift"), (few, "fused")],
        "rotary": [(replace(config, positions="rotary", sinusoids=None), None)] * 2,
    }
    if device.type == "cpu":
        pairs["blocked"] = [(config, "shift"), (config, "blocked")]
    results = {}
    for name, pair in pairs.items():
        actions: dict[str, Callable[[], object]] = {}
        for way, (sizes, backend) in zip(("plain", "own"), pair, strict=True):
            sizes = sizes if backend is None else replace(sizes, backend=backend)
            model = new_model(sizes, device=device)
            for block in model.layers:
                block.attention.counts_attention |= backend is None and way == "plain"
            actions |= {f"{way} {kind}": each for kind, each in steps(model, lanes, device).items()}
        taken = take_turns(actions, device, rounds, clock=core_clock(device))
        results[name] = {
            f"{kind} {unit}": value
            for kind in ("step", "scoring")
            for unit, value in (
                ("milliseconds", round(1e3 * taken[f"own {kind}"], 2)),
                ("of plain", round(taken[f"own {kind}"] / taken[f"plain {kind}"], 3)),
            )
        }
    return results


def steps(
    model: CompressiveTransformer, lanes: int, device: torch.device
) -> dict[str, Callable[[], Any]]:
    """Forward and backward pass over full memory, and scoring with kept keys."""
    read, targets, *_ = random_batches(model.config, lanes, device=device)()
    memory = filled(model.config, model.empty_memory(lanes))
    kept = model.keep_keys(memory).detach()

    def step() -> None:
        segment_loss(model.train()(read, memory, targets)).backward()
        model.zero_grad()

    @torch.no_grad()
    def scoring() -> Tensor:
        nats: Tensor = model.eval()(read, kept, targets).predictions
        return nats

    return {"step": step, "scoring": scoring}
