"""Training step: trained tokens per second and share of the matrix rate, beside others'.

The step is forward, backward, clipping and AdamW in plain torch, without the engine around it.
"""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from data.common.outputs import check_output
from data.common.schema import Size
from lm.model.flops import training_flops
from lm.model.model_config import ModelConfig
from tools.benchmarks import others
from tools.benchmarks.building import (
    BYTES,
    SMALL,
    Step,
    new_model,
    random_batches,
    random_step,
    segments_to_fill,
)
from tools.benchmarks.timing import (
    core_clock,
    machine,
    pick_device,
    quartiles,
    report,
    turns,
)

SQUARE = 1024
"""Size of the matrices whose product stands for the machine's matrix rate."""


def main(
    model: ModelConfig = SMALL,
    lanes: Size = 8,
    vocabulary: Size = BYTES,
    rounds: Size = 20,
    device: str = "auto",
    beside: list[others.Name] | None = None,
    json: Path | None = None,
) -> None:
    """Time the training step of a model on random tokens, with full memory.

    Args:
        model: shape of the model.
        lanes: segments read side by side.
        vocabulary: number of different tokens.
        rounds: steps that are timed.
        device: cpu, cuda, or auto for the GPU where there is one.
        beside: other implementations, which are timed at the same sizes and take turns with it;
            they are installed into build/others first.
        json: file for the result.
    """
    check_output(json)
    place = pick_device(device)
    steps = {"this model": random_step(new_model(model, vocabulary, place), lanes)}
    if beside:
        others.use()
        for name in beside:
            steps[name] = other_step(name, model, lanes, vocabulary, place)
    for step in steps.values():
        for _ in range(segments_to_fill(model) + 1):
            step()
    # The matrix rate is measured between the steps, so that both see the same machine.
    actions: dict[str, Callable[[], object]] = {**steps, "matmul": matmul(place)}
    rounds_taken = turns(actions, place, rounds, clock=core_clock(place))
    taken = {name: median(each) for name, each in rounds_taken.items()}
    tokens = lanes * model.segment
    work = training_flops(model, vocabulary, lanes)
    rate = 2 * SQUARE**3 / taken["matmul"]
    speed = {name: tokens / taken[name] for name in steps}
    own = speed["this model"]
    result = {
        "tokens_per_second": {name: round(value) for name, value in speed.items()},
        "ratio": {name: round(own / value, 2) for name, value in speed.items()},
        "ratio_quartiles": {
            name: quartiles(paired(rounds_taken[name], rounds_taken["this model"]))
            for name in steps
            if name != "this model"
        },
        "step_milliseconds": round(taken["this model"] * 1e3, 2),
        "mflop_per_token": round(work.total / 1e6, 1),
        "mflop_by_part": {name: round(flops / 1e6, 2) for name, flops in work.flops.items()},
        "matmul_gflops": round(rate / 1e9, 1),
        "mfu": round(own * work.total / rate, 3),
    }
    report(result | machine(place), json)


def paired(theirs: list[float], ours: list[float]) -> list[float]:
    """How many times as fast we are, round by round."""
    return [their / our for their, our in zip(theirs, ours, strict=True)]


def matmul(device: torch.device) -> Callable[[], Tensor]:
    """A function that multiplies two square matrices in float32."""
    left, right = (torch.randn(SQUARE, SQUARE, device=device) for _ in range(2))
    product = left @ right
    return lambda: torch.mm(left, right, out=product)


def other_step(
    name: others.Name, config: ModelConfig, lanes: int, vocabulary: int, device: torch.device
) -> Step:
    """The training step of another implementation."""
    model, read = others.build(name, config, vocabulary, device)

    return Step(model, others.losses_of(read), random_batches(config, lanes, vocabulary, device))
