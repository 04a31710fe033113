"""Reading: tokens a second that the quick start's model scores, beside those that it trains on.

Both are budgeted for: whoever trains for five minutes does not wait as long for the score.
"""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

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
    CPU,
    Batches,
    Step,
    filled,
    losses_of,
    new_model,
    random_batches,
)
from tools.benchmarks.timing import machine, quartiles, report, turns

BUDGET = 2.5
"""Times as many tokens as training's that scoring is to read in a second of one core."""
FIRST_STEP = 5.0
"""Seconds of the processor from the start of this process to the end of the first step."""


def main(rounds: Size = 12, lanes: Size | None = None, json: Path | None = None) -> None:
    """Train and score random tokens in turns, on one core, at the shape of the quick start.

    Args:
        rounds: how often each is timed.
        lanes: segments that are scored side by side; none: as many as training reads.
        json: file for the result.
    """
    check_output(json)
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
    actions: dict[str, Callable[[], object]] = {"training": step, "scoring": read}
    seconds = turns(actions, CPU, rounds, clock=time.process_time)
    segment = config.model.segment
    speeds = {
        "training": [own * segment / each for each in seconds["training"]],
        "scoring": [lanes * segment / each for each in seconds["scoring"]],
    }
    pairs = zip(speeds["scoring"], speeds["training"], strict=True)
    quarters = quartiles([scored / trained for scored, trained in pairs])
    return {
        "tokens_per_second": {name: round(median(each)) for name, each in speeds.items()},
        "scoring_over_training": quarters,
        "budget": BUDGET,
        "first_step_at": round(first, 2),
        "first_step_budget": FIRST_STEP,
        "within_budgets": quarters[1] >= BUDGET and first <= FIRST_STEP,
        **machine(CPU),
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
