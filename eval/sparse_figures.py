"""Figures of sparse models: pruning, memory, time, and scores of experiments."""

from typing import Any

from matplotlib.figure import Figure

from eval.figures import Results, axes_of, grouped_bars
from eval.protocol import spoken

DEVICE = ("parameters", "gradients", "moments", "places")
HOST = ("reservoir", "bits")


def figure_of(results: Results) -> Figure:
    """The figure that a kind of results has: of eval.prune, or of one benchmark or experiment.

    Raises:
        ValueError: results of another kind, or several of a kind that is drawn alone.
    """
    contents = list(results.values())
    if all(isinstance(content, dict) and "pruning" in content for content in contents):
        return pruning(results)
    if len(contents) == 1:
        (content,) = contents
        if isinstance(content, list):
            return experiment(content)
        if "memory" in content:
            return memory(content["memory"])
        for part in ("step", "matrix"):
            if part in content:
                return time(content[part])
    raise ValueError(
        "what is drawn is JSON of eval.prune, or one of tools.bench sparse, or one table.json of "
        "tools.experiments"
    )


def pruning(results: Results) -> Figure:
    """Score against the share of weights that are zero, a line for each run."""
    unit = spoken(next(iter(results.values()))["unit"])
    figure, axes = axes_of("One-shot magnitude pruning", "share of weights that are zero", unit)
    for name, result in results.items():
        points = [(point["zero"], point["value"]) for point in result["pruning"]]
        axes.plot(*zip(*points, strict=True), "o-", label=f"{name} (alpha {result['alpha']:g})")
    axes.legend()
    return figure


def memory(lines: list[dict[str, Any]]) -> Figure:
    """Bytes for each weight by what they are for, a bar for each form of the matrices."""
    figure, axes = axes_of("Memory", "bytes for each weight", "")
    names = [line["form"] for line in lines]
    left = [0.0] * len(lines)
    for part in (*DEVICE, *HOST):
        sizes = [line[part] for line in lines]
        label = f"{part} (host)" if part in HOST else part
        axes.barh(names, sizes, left=left, label=label, hatch="//" if part in HOST else None)
        left = [start + size for start, size in zip(left, sizes, strict=True)]
    # Room for the legend beside the longest bar.
    axes.set_xlim(0, 1.4 * max(left))
    axes.invert_yaxis()
    axes.legend(loc="lower right")
    return figure


def time(lines: list[dict[str, Any]]) -> Figure:
    """Speed against dense matrices, a group of bars for each pair of shares."""
    figure, axes = axes_of("Time", "forward/backward share of the weights", "times dense speed")
    bars: dict[str, list[float]] = {}
    shares: list[str] = []
    for line in lines:
        form, _, share = line["form"].rpartition(" ")
        share = line.get("forward/backward", share)
        if share == "dense":
            continue
        if share not in shares:
            shares.append(share)
        name = line["form"] if "forward/backward" in line else form
        bars.setdefault(name, []).append(line["both x"] if "both x" in line else line["x"])
    grouped_bars(axes, shares, bars)
    axes.axhline(1, color="black", linewidth=1)
    return figure


def experiment(rows: list[dict[str, Any]]) -> Figure:
    """Scores of an experiment's variants with their deviation over seeds, best first."""
    figure, axes = axes_of("Variants after equal steps", "bits per byte", "")
    ranked = sorted(rows, key=lambda row: row["bits_per_byte"])
    scores = [row["bits_per_byte"] for row in ranked]
    spreads = [row["deviation"] or 0 for row in ranked]
    axes.barh([row["variant"] for row in ranked], scores, xerr=spreads)
    lowest = scores[0]
    highest = max(score + spread for score, spread in zip(scores, spreads, strict=True))
    room = 0.1 * (highest - lowest) or 0.1
    axes.set_xlim(lowest - 3 * room, highest + room)
    axes.invert_yaxis()
    return figure
