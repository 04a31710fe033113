"""Reading: tokens a second that the quick start's model scores, beside those that it trains on.

Both are budgeted for: whoever trains for five minutes does not wait as long for the score.
"""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles

import torch
from torch import Tensor

from data.common.command import load_config
from data.common.outputs import check_output
from data.common.schema import Size
from lm.model.transformer import CompressiveTransformer
from lm.runs.run_config import RunConfig
from lm.threads import keep_blocks
from lm.training.optim import build_optimizer
from tools.benchmarks.building import (
    CONFIGS,
    Batches,
    Step,
    filled,
    losses_of,
    new_model,
    random_batches,
)
from tools.benchmarks.timing import machine, report

BUDGET = 2.5
"""Times as many tokens as training's that scoring is to read in a second of one core."""
FIRST_STEP = 5.0
"""Seconds of the processor from the start of this process to the end of the first step."""


def main(rounds: Size = 12, lanes: Size | None = None, json: Path | None = None) -> None:
    """Train and score random tokens in turns, on one core, at the shape of the quick start.

    Args:
        rounds: how often each is timed; at least 2.
        lanes: segments that are scored side by side; none: as many as training reads.
        json: file for the result.
    """
    check_output(json)
    if rounds < 2:
        raise ValueError("--rounds must be 2 or more: quartiles are told")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        report(compared(load_config(RunConfig, CONFIGS / "quickstart.yaml"), rounds, lanes), json)
    finally:
        torch.set_num_threads(threads)


def compared(config: RunConfig, rounds: int, lanes: int | None = None) -> dict[str, object]:
    """Both speeds, the quartiles of their ratio, and the time to the first step.

    Args:
        config: a run whose vocabulary's size is known beforehand.
        rounds: how often each is timed.
        lanes: see `main`.
    """
    keep_blocks()
    own, vocabulary = config.training.lanes, config.data.vocabulary_size
    assert vocabulary is not None
    lanes = lanes or own
    model = new_model(config.model, vocabulary)
    optimizer = build_optimizer(model, config.optim)
    batches = random_batches(config.model, own, vocabulary)
    step = Step(model, losses_of(model), batches, optimizer)
    step()
    first = time.process_time()
    read = scoring(model, random_batches(config.model, lanes, vocabulary), lanes)
    seconds = in_turns({"training": step, "scoring": read}, rounds)
    segment = config.model.segment
    speeds = {
        "training": [own * segment / each for each in seconds["training"]],
        "scoring": [lanes * segment / each for each in seconds["scoring"]],
    }
    pairs = zip(speeds["scoring"], speeds["training"], strict=True)
    quarters = quantiles([scored / trained for scored, trained in pairs], n=4)
    return {
        "tokens_per_second": {name: round(median(each)) for name, each in speeds.items()},
        "scoring_over_training": [round(quarter, 2) for quarter in quarters],
        "budget": BUDGET,
        "first_step_at": round(first, 2),
        "first_step_budget": FIRST_STEP,
        "within_budgets": quarters[1] >= BUDGET and first <= FIRST_STEP,
        **machine(torch.device("cpu")),
    }


def scoring(model: CompressiveTransformer, batches: Batches, lanes: int) -> Callable[[], Tensor]:
    """Scoring of one segment after the other, with kept keys of full memory."""
    with torch.no_grad():
        memory = model.keep_keys(filled(model.config, model.empty_memory(lanes)))

    def read() -> Tensor:
        nonlocal memory
        segment = batches()
        model.eval()
        with torch.no_grad():
            output = model(segment.inputs_BT, memory, segment.targets_BT)
        model.train()
        memory = output.memory
        return output.predictions

    return read


def in_turns(actions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of the processor that each action takes, after two rounds that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 2):
        for name, action in actions.items():
            start = time.process_time()
            action()
            taken[name].append(time.process_time() - start)
    return {name: each[2:] for name, each in taken.items()}
