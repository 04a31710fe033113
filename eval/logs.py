"""What a run's metrics.jsonl says of its training, checked before it is drawn or told."""

import math
import re
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import ConfigDict

from data.common.schema import Count, Record, as_record
from lm.runs.runlog import read_metrics

Line = dict[str, Any]
"""A record of the log, once it is known to be as `Logged` says."""


class Logged(Record):
    """A record of training or validation, as far as it is read here; others are passed over."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    step: Count
    loss: float | None = None
    bits_per_byte: float | None = None
    seconds: float | None = None
    tokens_per_second: float | None = None
    mfu: float | None = None
    validation_bits_per_byte: float | None = None
    validation_bits_per_token: float | None = None
    sparse_changed: float | None = None


def training_log(run: Path, last_step: int | None = None) -> list[Line]:
    """Records of a run up to a step, without numbers that are not finite.

    Raises:
        ValueError: there is no log, it is damaged, or no loss is in it yet.
    """
    log = run / "metrics.jsonl"
    if not log.is_file():
        raise ValueError(f"{run} holds no metrics.jsonl; train it first")
    try:
        records = read_metrics(log)
    except (ValueError, RecursionError) as error:
        said = str(error) if str(log) in str(error) else f"{log} is damaged ({error})"
        raise ValueError(f"{said}; remove the line, or the log") from None
    lines = []
    for number, content in enumerate(records, 1):
        try:
            line = as_record(Logged, content)
        except ValueError as error:
            raise ValueError(f"{log}, record {number}: {error}; remove that line") from None
        if last_step is None or line.step <= last_step:
            numbers = line.model_dump(exclude_none=True)
            lines.append({name: n for name, n in numbers.items() if math.isfinite(n)})
    if not any("loss" in line for line in lines):
        raise ValueError(f"{log} has no losses yet; train on, or remove it if it is damaged")
    return lines


def step_of(checkpoint: str) -> int | None:
    """The training step of a checkpoint's name; None where it says none."""
    found = re.fullmatch(r"step-(\d+)", checkpoint)
    return int(found[1]) if found else None


def trained(lines: list[Line]) -> dict[str, float | None]:
    """Steps, seconds, and medians of speed and of its share of the matmul rate, all of the same
    records; None for what none of them says.
    """
    training = [line for line in lines if "loss" in line]
    # The share is measured for some records only; a speed beside it is of the same ones.
    measured = [line for line in training if "mfu" in line] or training

    def all_of(name: str, some: list[Line]) -> list[float]:
        return [line[name] for line in some if name in line]

    return {
        "steps": training[-1]["step"],
        "seconds": max(all_of("seconds", training), default=None),
        **{
            name: median(numbers) if (numbers := all_of(name, measured)) else None
            for name in ("tokens_per_second", "mfu")
        },
    }
