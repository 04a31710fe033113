"""A run's folder describes itself: config.yaml, env.json, metrics.jsonl."""

import importlib.metadata
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field, ValidationError

from data.common.files import write_json
from data.common.outputs import writing
from data.common.say import warn
from data.common.schema import Count, Record, complaint

PACKAGES = ("torch", "deepspeed", "numpy", "safetensors")


def environment() -> dict[str, Any]:
    """Versions, device, commit and command line of this process."""
    return {
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "commit": commit(),
        "argv": sys.argv,
    }


def device_name() -> str:
    """The GPU's name, or the processor's architecture."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} ({os.cpu_count()} cores)"


def commit() -> str | None:
    """Commit of the checkout this file is in, with "+" when files differ; None outside git."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        result = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True
        )
        return result.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


class Line(Record):
    """A line of metrics.jsonl."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, int | float] = Field(init=False)

    step: Count
    not_finite: dict[str, str] = Field(default_factory=dict)
    """What was infinite or not a number, which JSON has no way to write."""


class MetricsLog:
    """metrics.jsonl: one JSON object a line, each with its `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size if path.exists() else 0
        self.waiting = ""

    def cut(self, step: int, without: str | None = None) -> None:
        """Drop everything after `step`, which a resumed run will write again, and the records of
        that step which have the key `without`.

        Raises:
            ValueError: a line is damaged.
        """
        if self.path.exists():
            lines = _lines(self.path)
            kept = [line for line, record in lines if stays(record, step, without)]
            with writing(self.path) as temporary:
                temporary.write_text("".join(kept))

    def after(self, step: int) -> str:
        """The lines after `step`; ValueError for a damaged one."""
        lines = _lines(self.path) if self.path.exists() else ()
        return "".join(line for line, record in lines if record["step"] > step)

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; one that finds no room, on a full disk, is written with a later one."""
        self.waiting += json.dumps(finite(record), allow_nan=False) + "\n"
        self._append()

    def close(self) -> None:
        """Try what waits a last time."""
        if self.waiting:
            self._append()

    def _append(self) -> None:
        try:
            with self.path.open("ab") as file:
                # Half a line of an attempt that failed.
                file.truncate(self.size)
                file.write(self.waiting.encode())
        except OSError as error:
            warn(f"{self.path} was not written ({error.strerror}); it will be tried again")
        else:
            self.size += len(self.waiting.encode())
            self.waiting = ""


def stays(record: Mapping[str, Any], step: int, without: str | None) -> bool:
    """Whether a record belongs to what was done up to `step`, less its records with a key."""
    last: int = record["step"]
    odd = record.get("not_finite", {})
    return last < step or (last == step and without not in record and without not in odd)


def finite(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record whose infinite and undefined numbers have moved to `not_finite`, as text by name."""
    numbers = {name: value for name, value in record.items() if isinstance(value, float)}
    odd = {name: str(value) for name, value in numbers.items() if not math.isfinite(value)}
    rest = {name: value for name, value in record.items() if name not in odd}
    return rest | {"not_finite": odd} if odd else rest


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics.jsonl, without the half line that a killed process may have left at
    the end.

    Raises:
        ValueError: some other line is damaged.
    """
    return [record for _, record in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each whole line and its record."""
    *lines, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*lines, last], 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            # Logs of earlier versions have NaN, which is not JSON.
            value = finite(value) if isinstance(value, dict) else value
            record = Line.model_validate(value).model_dump(exclude_unset=True)
        except (ValueError, RecursionError) as error:
            if number > len(lines):
                return
            reason = complaint(error) if isinstance(error, ValidationError) else "is not JSON"
            raise ValueError(
                f"{path}, line {number}: {reason}; mend the line or take it out"
            ) from None
        yield line.decode() + "\n", record


def trained_seconds(path: Path) -> float:
    """Seconds of training steps that a metrics.jsonl tells of; 0 if there is none."""
    records = read_metrics(path) if path.exists() else []
    return max((record.get("seconds", 0.0) for record in records), default=0.0)


def write_environment(run: Path) -> None:
    """Write env.json."""
    write_json(run / "env.json", environment())
