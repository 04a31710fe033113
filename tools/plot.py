"""Program: draw the training curve of a run, or of several in one figure."""

import math
from pathlib import Path

import matplotlib as mpl

from data import command
from lm.training.runlog import read_metrics

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes


def main(run: Path, beside: list[Path] | None = None, out: Path | None = None) -> None:
    """Draw loss on training text and scores on validation text against training steps.

    Args:
        run: folder of a run.
        beside: folders of other runs for the same figure, as '[runs/a, runs/b]'.
        out: a .png or .svg file; by default curve.png in the run's folder.
    """
    figure, axes = plt.subplots(figsize=(7, 4))
    for folder in (run, *(beside or [])):
        draw(axes, folder, label=str(folder) if beside else "training")
    axes.set_xlabel("training steps")
    axes.set_ylabel("bits per token (training), bits per byte (validation)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    target = out or run / "curve.png"
    figure.savefig(target, dpi=120)
    print(target)


def draw(axes: Axes, run: Path, label: str) -> None:
    """Add one run: a line of training losses and points of validation scores.

    Raises:
        ValueError: the run has logged nothing.
    """
    log = run / "metrics.jsonl"
    if not log.is_file():
        raise ValueError(f"{run} holds no metrics.jsonl; train it first")
    records = read_metrics(log)
    losses = [(r["step"], r["loss"] / math.log(2)) for r in records if "loss" in r]
    key = "validation_bits_per_byte"
    scores = [(r["step"], r[key]) for r in records if key in r]
    if not losses:
        raise ValueError(f"{log} has no losses yet")
    (line,) = axes.plot(*zip(*losses, strict=True), linewidth=1, label=label)
    if scores:
        final = f"validation ({scores[-1][1]:.3f} at the end)"
        axes.plot(*zip(*scores, strict=True), "o", color=line.get_color(), label=final)
    axes.set_ylim(0, min(8.5, max(loss for _, loss in losses)) + 0.2)


if __name__ == "__main__":
    command.run(main)
