"""Kept keys: scoring with keys and values of memory kept, against projecting memory anew."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from data.common.outputs import check_output
from data.common.schema import Size
from lm.model.flops import scoring_flops
from lm.model.model_config import ModelConfig
from tools.benchmarks.building import BYTES, SMALL, new_model, random_batches
from tools.benchmarks.timing import core_clock, machine, pick_device, report, take_turns

LENGTHS = ((128, 128, 192), (128, 128, 32), (32, 256, 256), (16, 128, 128))
"""Segment, memory and compressed memory; the first is in the proportions of 768, 768, 1152."""


def main(
    model: ModelConfig = SMALL,
    lanes: Size = 8,
    rounds: Size = 15,
    device: str = "auto",
    json: Path | None = None,
) -> None:
    """Time scoring of one segment with full memory, at several lengths.

    Args:
        model: shape of the model; its lengths are replaced.
        lanes: segments read side by side.
        rounds: segments that are timed.
        device: cpu, cuda, or auto for the GPU where there is one.
        json: file for the result.
    """
    check_output(json)
    place = pick_device(device)
    rows = []
    for segment, memory, compressed in LENGTHS:
        config = replace(model, segment=segment, memory=memory, compressed=compressed)
        readers = {kept: reader(config, lanes, place, kept) for kept in (False, True)}
        actions = {str(kept): action for kept, action in readers.items()}
        taken = take_turns(actions, place, rounds, warmup=30, clock=core_clock(place))
        counted = {
            str(kept): scoring_flops(config, BYTES, lanes, kept).total for kept in (False, True)
        }
        rows.append(
            {
                "segment": segment,
                "memory": memory,
                "compressed": compressed,
                "tokens_per_second": round(lanes * segment / taken["True"]),
                "time_saved": round(1 - taken["True"] / taken["False"], 3),
                "flops_saved": round(1 - counted["True"] / counted["False"], 3),
            }
        )
    report({"lengths": rows} | machine(place), json)


def reader(config: ModelConfig, lanes: int, device: torch.device, kept: bool) -> Callable[[], None]:
    """A function that scores the next segment."""
    model = new_model(config, device=device).eval()
    memory = model.empty_memory(lanes)
    inputs, targets, *_ = random_batches(config, lanes, device=device)()

    @torch.no_grad()
    def read() -> None:
        nonlocal memory
        memory = model.keep_keys(memory) if kept else memory
        memory = model(inputs, memory, targets).memory

    return read
