"""Figures of training curves and of the results of scores, as matplotlib figures."""

import io
import math
from collections.abc import Mapping
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Results = Mapping[str, dict[str, Any]]
"""Results by the name of their run."""


def svg(figure: Figure) -> str:
    """A figure as SVG, the same bytes for the same figure; closes it."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "figure", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def axes_of(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty figure."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.set_title(title)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    return figure, axes


def training_curve(axes: Axes, records: list[dict[str, Any]], label: str) -> None:
    """Add one run: a line of training losses and points of validation scores."""
    losses = [(r["step"], r["loss"] / math.log(2)) for r in records if "loss" in r]
    key = "validation_bits_per_byte"
    scores = [(r["step"], r[key]) for r in records if key in r]
    (line,) = axes.plot(*zip(*losses, strict=True), linewidth=1, label=label)
    if scores:
        final = f"validation ({scores[-1][1]:.3f} at the end)"
        axes.plot(*zip(*scores, strict=True), "o", color=line.get_color(), label=final)
    axes.set_ylim(0, min(8.5, max(loss for _, loss in losses)) + 0.2)


def training_curves(metrics: Mapping[str, list[dict[str, Any]]]) -> Figure:
    """Loss on training text and scores on validation text against training steps."""
    figure, axes = axes_of(
        "Training", "training steps", "bits per token (training), bits per byte (validation)"
    )
    for name, records in metrics.items():
        training_curve(axes, records, name)
    axes.legend()
    return figure


def sweep(swept: dict[str, Any]) -> Figure:
    """Scores against the length with the most values, a line for each choice of the others."""
    points = swept["points"]
    values = {name: {p[name] for p in points} for name in ("compressed", "memory", "segment")}
    x = max(values, key=lambda name: len(values[name]))
    others = [name for name in values if name != x]
    unit = points[0]["unit"].replace("_", " ")
    figure, axes = axes_of(f"Lengths tried on {swept['split']} text", f"{x} slots", unit)
    for key in sorted({tuple(p[name] for name in others) for p in points}):
        line = sorted(
            (p[x], p["value"]) for p in points if tuple(p[name] for name in others) == key
        )
        label = ", ".join(f"{name} {value}" for name, value in zip(others, key, strict=True))
        axes.plot(*zip(*line, strict=True), "o-", label=label)
    best = points[swept["best"]]
    axes.plot(best[x], best["value"], "k*", markersize=14, label="chosen")
    axes.legend()
    return figure


def grouped_bars(axes: Axes, groups: list[str], bars: Mapping[str, list[float]]) -> None:
    """Bars side by side: one of each run in each group."""
    width = 0.8 / len(bars)
    for number, (name, heights) in enumerate(bars.items()):
        places = [index + (number - (len(bars) - 1) / 2) * width for index in range(len(heights))]
        axes.bar(places, heights, width, label=name)
    axes.set_xticks(range(len(groups)), groups)
    axes.legend()


def frequency(results: Results) -> Figure:
    """Perplexity of words by how often training has seen them (paper, table 7)."""
    figure, axes = axes_of(
        "Words by frequency", "occurrences in the training text", "perplexity a word"
    )
    some = next(iter(results.values()))["frequency"]
    bars = {name: [b["perplexity"] for b in r["frequency"]] for name, r in results.items()}
    grouped_bars(axes, [bucket["name"] for bucket in some], bars)
    axes.set_yscale("log")
    return figure


def position(results: Results) -> Figure:
    """Bits per byte by place in the document."""
    figure, axes = axes_of(
        "Place in the document", "tokens from the document's beginning", "bits per byte"
    )
    for name, result in results.items():
        rows = result["position"]
        axes.plot([r["to"] for r in rows], [r["bits_per_byte"] for r in rows], "o-", label=name)
    axes.set_xscale("log", base=2)
    axes.legend()
    return figure


def attention(result: dict[str, Any], name: str) -> Figure:
    """Share of attention by age of what is attended to, oldest first (paper, figure 2)."""
    figure, axes = axes_of(f"Attention of {name}", "from old to new", "share of attention")
    place = 0
    for store, layers in result["attention"]["ages"].items():
        buckets = len(layers[0])
        if not buckets:
            continue
        places = range(place, place + buckets)
        mean = [sum(column) / len(layers) for column in zip(*layers, strict=True)]
        axes.bar(places, mean, label=f"{store}, mean over layers")
        for layer in layers:
            axes.plot(places, layer, ".", color="black", markersize=3)
        place += buckets
    axes.set_xticks([])
    axes.legend()
    return figure


def reconstruction(results: Results) -> Figure:
    """Error of compression, layer by layer."""
    figure, axes = axes_of("Reconstruction", "layer", "mean squared error")
    layers = max(len(result["reconstruction"]) for result in results.values())
    bars = {name: result["reconstruction"] for name, result in results.items()}
    grouped_bars(axes, [str(layer) for layer in range(layers)], bars)
    return figure


def ablation(results: Results) -> Figure:
    """What changing compressed memory costs."""
    figure, axes = axes_of(
        "Compressed memory changed", "compressed memory", "bits per byte more than intact"
    )
    kinds = [
        kind
        for kind in ("absent", "zeroed", "shuffled", "exchanged")
        if all(kind in result["ablation"] for result in results.values())
    ]
    bars = {
        name: [result["ablation"][kind] - result["ablation"]["intact"] for kind in kinds]
        for name, result in results.items()
    }
    grouped_bars(axes, kinds, bars)
    return figure


def dynamic(result: dict[str, Any], name: str) -> Figure:
    """Cost along the text with fixed weights and with weights that learn from it."""
    figure, axes = axes_of(
        f"Dynamic evaluation of {name}", "tokens scored", "bits per byte less than fixed weights"
    )
    fixed, *moving = result["dynamic"]["passes"]
    for found in moving:
        gains = [
            (here["tokens"], there["bits_per_byte"] - here["bits_per_byte"])
            for here, there in zip(found["curve"], fixed["curve"], strict=True)
        ]
        axes.plot(*zip(*gains, strict=True), label=f"learning rate {found['lr']:g}")
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.legend()
    return figure


def distance(results: Results) -> Figure:
    """Share of answers' bytes that are known, by the distance to what they need."""
    figure, axes = axes_of("Recall", "distance in bytes, from", "bytes right")
    for name, result in results.items():
        rows = result["distance"]["buckets"]
        axes.plot([r["from"] for r in rows], [r["accuracy"] for r in rows], "o-", label=name)
    reach = next(iter(results.values()))["distance"]["reach"]
    for number, (store, far) in enumerate(reach.items()):
        axes.axvline(far, color="black", linewidth=0.8, linestyle=(0, (number + 1, 2)))
        axes.annotate(store, (far, 1.02), rotation=45, fontsize=8, annotation_clip=False)
    axes.set_xscale("log", base=2)
    axes.set_ylim(0, 1)
    axes.legend()
    return figure
