"""Weights at the end of a run beside those at its start, and what choices of sets changed."""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from eval.logs import training_log
from lm.inference.loading import LoadedRun
from lm.model.transformer import CompressiveTransformer
from lm.runs.adopted_config import AdoptedConfig
from lm.sparse.pruning import dense_matrices
from lm.sparse.sparse_config import Kind
from lm.training.origin import ORIGIN

KINDS: tuple[Kind, ...] = ("attention", "feedforward")
SMALL = 0.1
"""Weights below this share of what their matrix began with count as faded."""
BEFORE, JUMP, LATER = 10, (0, 2), (20, 40)
"""Steps before a choice, and windows of steps after it, whose mean losses are compared."""


@dataclass(frozen=True)
class Weights:
    """The weights of attention and feed-forward that compute, beside those at the start."""

    number: int
    flipped: float
    """Share whose sign is not that of the start."""
    faded: float
    """Share smaller than a tenth of the root mean square of their matrix at the start."""


@dataclass(frozen=True)
class Choices:
    """Means over some choices of sets."""

    first: int
    last: int
    exchanged: float
    """Share of the forward set that is new."""
    rise: float | None
    """Bits a token that the two steps after lose, against the ten before."""
    left: float | None
    """What is left of it in the steps 21 to 40 after."""


@torch.no_grad()
def compare(loaded: LoadedRun) -> Weights:
    """A run's weights beside those that its seed gave it; ValueError for one that was adopted."""
    config = loaded.config
    if isinstance(config, AdoptedConfig):
        raise ValueError(  # noqa: TRY004
            f"{loaded.folder} was adopted, so no seed gave it its first weights"
        )
    if (loaded.folder / ORIGIN).is_file():
        raise ValueError(f"{loaded.folder} began with the weights of another run, not of a seed")
    torch.manual_seed(config.training.seed)
    start = dense_matrices(CompressiveTransformer(config.model, loaded.vocabulary.size), KINDS)
    number, flipped, faded = 0, 0, 0
    for name, module in dense_matrices(loaded.model, KINDS).items():
        weight, begun = module.weight.cpu(), start[name].weight
        used = weight != 0
        number += int(used.sum())
        flipped += int((used & (weight.sign() != begun.sign())).sum())
        faded += int((used & (weight.abs() < SMALL * begun.square().mean().sqrt())).sum())
    return Weights(number, flipped / max(1, number), faded / max(1, number))


def choices(
    run: Path, loaded: LoadedRun, beside: Path | None, groups: tuple[int, ...]
) -> list[Choices]:
    """What a run's choices of sets did, by group; nothing if it made none.

    Raises:
        ValueError: a loss that is needed was not logged.
    """
    every = loaded.config.sparse.refresh
    if loaded.config.sparse.density is None or every is None:
        return []
    # Records carry the statistics of the latest choice, which was made after step number * every.
    exchanged = {
        (record["step"] - 1) // every: record["sparse_changed"]
        for record in training_log(run)
        if "sparse_changed" in record
    }
    excess = None if beside is None else compared(run, beside)
    parts = []
    for first, stop in pairwise(groups):
        numbers = [number for number in sorted(exchanged) if first <= number < stop]
        if not numbers:
            continue
        mean = sum(exchanged[number] for number in numbers) / len(numbers)
        rise, left = None, None
        if excess is not None:
            steps = [number * every for number in numbers]
            rise = change(excess, steps, every, JUMP)
            left = change(excess, steps, every, LATER)
        parts.append(Choices(numbers[0], numbers[-1], mean, rise, left))
    return parts


def compared(run: Path, beside: Path) -> Tensor:
    """Loss of every step above that of another run."""
    own, other = losses(run), losses(beside)
    if len(own) != len(other):
        raise ValueError(f"{run} has {len(own)} steps and {beside} {len(other)}")
    return own - other


def losses(run: Path) -> Tensor:
    """Training loss of every step, in nats a token.

    Raises:
        ValueError: some were not logged.
    """
    found = {record["step"]: record["loss"] for record in training_log(run) if "loss" in record}
    if sorted(found) != list(range(1, len(found) + 1)):
        raise ValueError(f"{run} has not logged the loss of every step; train with log_every 1")
    return torch.tensor([found[step] for step in sorted(found)], dtype=torch.float64)


def change(excess: Tensor, steps: list[int], every: int, window: tuple[int, int]) -> float | None:
    """By how many bits the mean of a window of steps after some steps is above that of the ten
    before; None if the window reaches beyond the next choice or the end.
    """
    begin, end = window
    if end > every or steps[-1] + end > len(excess):
        return None
    before = torch.cat([excess[step - min(BEFORE, every) : step] for step in steps])
    after = torch.cat([excess[step + begin : step + end] for step in steps])
    return float(after.mean() - before.mean()) / math.log(2)


def spoken(run: Path, weights: Weights, parts: list[Choices]) -> str:
    """A run's lines."""
    lines = [
        f"{run}: of {weights.number:,} weights {weights.flipped:.1%} have another sign than at the "
        f"start, {weights.faded:.1%} faded"
    ]
    for part in parts:
        line = f"  choices {part.first} to {part.last} exchanged {part.exchanged:.1%}"
        if part.rise is not None:
            line += f", the loss rose by {part.rise:.3f} bits a token"
        if part.left is not None:
            line += f", {part.left:.3f} are left"
        lines.append(line)
    return "\n".join(lines)
