"""A run's folder describes itself: config.yaml, env.json, metrics.jsonl."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from data.common.files import atomic_path, write_json
from data.common.say import warn

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


class MetricsLog:
    """metrics.jsonl: one JSON object a line, each with its `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size if path.exists() else 0
        self.waiting = ""

    def cut(self, step: int, without: str | None = None) -> None:
        """Drop everything after `step`, which a resumed run will write again, and the records of
        that step which have the key `without`.
        """
        if not self.path.exists():
            return
        # A killed process may have left half a line at the end.
        whole = [line for line in self.path.read_text().splitlines() if line.endswith("}")]
        kept = [line + "\n" for line in whole if stays(json.loads(line), step, without)]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(kept))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append a record; one that finds no room, on a full disk, is written with a later one."""
        self.waiting += json.dumps(record) + "\n"
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
    return last < step or (last == step and without not in record)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All records of a metrics.jsonl, without the half line that a killed process may have left at
    the end.

    Raises:
        ValueError: some other line is damaged.
    """
    lines = path.read_text().splitlines()
    if lines and not lines[-1].endswith("}"):
        lines.pop()
    try:
        return [json.loads(line) for line in lines]
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} has a line that is not JSON ({error})") from None


def trained_seconds(path: Path) -> float:
    """Seconds of training steps that a metrics.jsonl tells of; 0 if there is none."""
    records = read_metrics(path) if path.exists() else []
    return max((record.get("seconds", 0.0) for record in records), default=0.0)


def write_environment(run: Path) -> None:
    """Write env.json."""
    write_json(run / "env.json", environment())
