"""A throwaway program for the tests of the command line."""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from data.common.command import run


@dataclass(frozen=True)
class WarmupConfig:
    """Warm-up of the learning rate."""

    steps: int = 10
    """Optimiser steps until the peak."""


@dataclass(frozen=True)
class OptimConfig:
    """Adam and its schedule."""

    lr: float = 3e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of Adam's two moments."""
    kind: Literal["adam", "sgd"] = "adam"
    """Optimiser."""
    clip: int | None = None
    """Largest norm of the gradient; 100 % of it by default."""
    weight_decay: float = 0.1
    """Decoupled weight decay."""
    warmup: WarmupConfig = field(default_factory=WarmupConfig)

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise ValueError(f"optim.lr is {self.lr}; it must be above 0")


@dataclass(frozen=True)
class DataConfig:
    """Text and where it goes."""

    source: Path
    """Folder or file of text."""
    corpus: str = "text"
    """Name of the corpus."""
    suffixes: list[str] = field(default_factory=lambda: [".txt"])
    """Endings of the files that are read."""


def train(
    run: Path, data: DataConfig, optim: OptimConfig, top_p: float = 0.9, verify: bool = False
) -> None:
    """Train a model.

    Args:
        run: run folder.
        top_p: mass that is kept.
        verify: check every hash.
    """
    print(json.dumps([str(run), asdict(data), asdict(optim), top_p, verify], default=str))


def prepare(data: DataConfig, verify: bool = False) -> None:
    """Prepare shards."""
    print(json.dumps([asdict(data), verify], default=str))


def fail(kind: str) -> None:
    """Fail in one of several ways."""
    if kind == "value":
        raise ValueError("two\nlines")
    if kind == "file":
        Path("/nonexistent/file").read_bytes()
    if kind == "full":
        raise OSError(28, "No space left on device")
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "pipe":
        print("x" * 1_000_000)
        return
    raise AssertionError("our own bug")


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    """The sentence of a program that refused its input, after checking that it is only that."""
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert result.stderr.startswith("toy: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr.removeprefix("toy: error: ").rstrip("\n")


PROGRAMS = {"train": (train, None), "prepare": (prepare, "data"), "fail": (fail, None)}


def toy(arguments: list[str]) -> None:
    """Run the program that the first argument names with the others."""
    main, section = PROGRAMS[arguments[0]]
    run(main, section=section, argv=arguments[1:])


if __name__ == "__main__":
    toy(sys.argv[1:])
