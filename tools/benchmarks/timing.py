"""Timing that a busy machine spoils least: what is compared takes turns, and medians are kept."""

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

from data.common.outputs import write_result


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the GPU where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {name}: {str(error).partition('.')[0]}") from None


def synchronize(device: torch.device) -> None:
    """Wait for what the device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(
    action: Callable[[], object],
    device: torch.device,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Seconds that an action takes, with what it starts on the device."""
    synchronize(device)
    start = clock()
    action()
    synchronize(device)
    return clock() - start


def core_clock(device: torch.device) -> Callable[[], float]:
    """Seconds of one core where one thread of this process does all the work, so that other
    programs on the machine are not counted; seconds of the wall elsewhere.
    """
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time if alone else time.perf_counter


def take_turns(
    actions: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each action, in rounds of one after the other; see `turns`."""
    taken = turns(actions, device, rounds, warmup, clock)
    return {name: median(times) for name, times in taken.items()}


def turns(
    actions: Mapping[str, Callable[[], object]],
    device: torch.device,
    rounds: int,
    warmup: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each action in every round, in rounds of one after the other.

    Args:
        actions: by name.
        device: where they work.
        rounds: how often each is timed.
        warmup: how often each is done before.
        clock: what seconds are read from.
    """
    for action in actions.values():
        for _ in range(warmup):
            action()
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            taken[name].append(seconds(action, device, clock))
    return taken


def quartiles(ratios: Sequence[float]) -> list[float]:
    """Lower quartile, median and upper quartile, rounded; of one number three times that."""
    quarters = quantiles(ratios, n=4) if len(ratios) > 1 else list(ratios) * 3
    return [round(quarter, 3) for quarter in quarters]


def report(result: Any, file: Path | None) -> None:
    """Write a result to a file, if one is named, and print it as JSON; what could not be measured
    is null.
    """
    known = without_nan(result)
    write_result(file, known)
    print(json.dumps(known, indent=1))


def without_nan(value: Any) -> Any:
    """A result whose numbers that are not finite are None, because JSON has none."""
    if isinstance(value, dict):
        return {name: without_nan(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def machine(device: torch.device) -> dict[str, Any]:
    """What a measurement depends on beside the code."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}
