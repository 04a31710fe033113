"""Figures of training curves and of the results of scores, as matplotlib figures."""

import io
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from data.common.outputs import in_place, resolved, writing
from data.common.say import plain
from eval.results import bits_named, bits_of, spoken
from lm.inference.inference_config import BITS

Results = Mapping[str, dict[str, Any]]
"""Results by the name of their run."""
LONGEST = 80
"""Characters of a name in a figure, whose layout a longer one would break."""
KINDS = ("png", "svg")
"""What figures are drawn as."""
VALIDATION = tuple(f"validation_{unit}" for unit in BITS)


def short(name: object) -> str:
    """As `plain`, cut in the middle where it is very long."""
    text = plain(name)
    if len(text) <= LONGEST:
        return text
    half = (LONGEST - 3) // 2
    return f"{text[:half]}...{text[-half:]}"


def drawn(name: object) -> str:
    """A name for matplotlib, which reads what stands between dollar signs as TeX and leaves names
    that begin with an underscore out of legends.
    """
    text = short(name).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def svg(figure: Figure) -> str:
    """A figure as SVG, the same bytes for the same figure; closes it."""
    buffer = io.StringIO()
    with quiet(), mpl.rc_context({"svg.hashsalt": "figure", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(figure)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def axes_of(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    """An empty figure."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.set_title(drawn(title), wrap=True)
    axes.set_xlabel(drawn(x))
    axes.set_ylabel(drawn(y))
    axes.grid(alpha=0.3)
    return figure, axes


def add_legend(axes: Axes) -> None:
    """A legend, if anything has a name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def save(figure: Figure, path: Path, dpi: int = 120) -> None:
    """Write a figure to a file of the kind that its name says, a .png where it says none.

    Raises:
        ValueError: a kind that is not drawn; see `check_kind`.
    """
    kind = check_kind(path)
    with writing(path) as place, quiet():
        figure.savefig(place, dpi=dpi, format=kind)
    plt.close(figure)


def check_kind(path: Path) -> str:
    """The kind of figure that a file's name says.

    Raises:
        ValueError: none that is drawn.
    """
    kind = path.suffix.lower().removeprefix(".")
    if in_place(resolved(path)):
        return kind if kind in KINDS else "png"
    if kind not in KINDS:
        raise ValueError(f"{path} must end in .{' or .'.join(KINDS)}")
    return kind


@contextmanager
def quiet() -> Iterator[None]:
    """Context in which signs that the font lacks are boxes without a warning for each."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


EARLY = 0.15
"""Share of the first steps whose losses need not be in a figure of training: they fall steeply, and
what matters is what comes then."""


def training_curves(
    metrics: Mapping[str, list[dict[str, Any]]], beside: Mapping[str, float] | None = None
) -> Figure:
    """Loss on training text and scores on validation text against training steps; every run has
    some losses.

    Args:
        metrics: records of each run by its name.
        beside: numbers in bits per byte by name, such as what compressors make of the text.
    """
    records = [record for run in metrics.values() for record in run]
    units = [
        unit for unit, key in zip(BITS, VALIDATION, strict=True) if any(key in r for r in records)
    ]
    in_bytes = units == list(BITS[:1]) and all("bits_per_byte" in r for r in records if "loss" in r)
    unit = " or ".join(map(spoken, units or BITS[:1]))
    label = unit if in_bytes else f"bits per token (training), {unit} (validation)"
    figure, axes = axes_of("Training", "training steps", label)
    shown: list[float] = []
    for name, run in metrics.items():
        losses = [(r["step"], _loss(r, in_bytes)) for r in run if "loss" in r]
        begun = losses[-1][0] * EARLY
        shown += [loss for step, loss in losses if step >= begun]
        alone: dict[str, Any] = {"color": "silver"} if len(metrics) == 1 else {}
        (line,) = axes.plot(*zip(*losses, strict=True), linewidth=1, label=drawn(name), **alone)
        if scores := [(r["step"], r[key]) for r in run for key in VALIDATION if key in r]:
            step, score = scores[-1]
            shown += [score for at, score in scores if at >= begun]
            color: Any = "tab:blue" if alone else line.get_color()
            told = f"validation ({score:.3f} at step {step:,})"
            axes.plot(*zip(*scores, strict=True), "o-", label=told, color=color)
    for number, (name, bits) in enumerate((beside or {}).items() if in_bytes else ()):
        shown.append(bits)
        dashes: Any = (0, (number + 2, 2))
        label = drawn(f"{name} ({bits:.3f})")
        axes.axhline(bits, linewidth=1, color=f"C{number + 1}", linestyle=dashes, label=label)
    room = 0.05 * (max(shown) - min(shown)) or 0.1
    axes.set_ylim(min(shown) - room, max(shown) + room)
    add_legend(axes)
    return figure


def _loss(record: dict[str, Any], in_bytes: bool) -> float:
    """A training loss in bits per byte or per token."""
    return float(record["bits_per_byte"] if in_bytes else record["loss"] / math.log(2))


def sweep(swept: dict[str, Any]) -> Figure:
    """Scores against the length with the most values, a line for each choice of the others."""
    points = swept["points"]
    names = ("compressed", "memory", "segment", "sinks")
    tried = [{name: p.get(name) or 0 for name in names} | {"value": p["value"]} for p in points]
    values = {name: {p[name] for p in tried} for name in names if any(name in p for p in points)}
    x = max(values, key=lambda name: len(values[name]))
    others = [name for name in values if name != x]
    unit = spoken(points[0]["unit"])
    figure, axes = axes_of(f"Lengths tried on {swept['split']} text", f"{x} slots", unit)
    for key in sorted({tuple(p[name] for name in others) for p in tried}):
        line = sorted((p[x], p["value"]) for p in tried if tuple(p[name] for name in others) == key)
        label = ", ".join(f"{name} {value}" for name, value in zip(others, key, strict=True))
        axes.plot(*zip(*line, strict=True), "o-", label=drawn(label))
    best = tried[swept["best"]]
    axes.plot(best[x], best["value"], "k*", markersize=14, label="chosen")
    add_legend(axes)
    return figure


def grouped_bars(axes: Axes, groups: list[str], bars: Mapping[str, list[float]]) -> None:
    """Bars side by side: one of each run in each group."""
    width = 0.8 / max(1, len(bars))
    for number, (name, heights) in enumerate(bars.items()):
        places = [index + (number - (len(bars) - 1) / 2) * width for index in range(len(heights))]
        axes.bar(places, heights, width, label=drawn(name))
    axes.set_xticks(range(len(groups)), list(map(drawn, groups)))
    add_legend(axes)


def frequency(results: Results) -> Figure:
    """Perplexity of words by how often training has seen them (paper, table 7)."""
    figure, axes = axes_of(
        "Words by frequency", "occurrences in the training text", "perplexity a word"
    )
    names, perplexities = by_bucket(results)
    bars = {
        run: [here.get(name) or math.nan for name in names] for run, here in perplexities.items()
    }
    grouped_bars(axes, names, bars)
    axes.set_yscale("log")
    return figure


def by_bucket(results: Results) -> tuple[list[str], dict[str, dict[str, float | None]]]:
    """Names of all buckets of words, and the perplexities of each run by name; runs may have been
    cut at other frequencies.
    """
    found = {
        run: {bucket["name"]: bucket["perplexity"] for bucket in result["frequency"]}
        for run, result in results.items()
    }
    return list(dict.fromkeys(name for here in found.values() for name in here)), found


def position(results: Results) -> Figure:
    """Bits per byte by place in the document."""
    figure, axes = axes_of(
        "Place in the document",
        "tokens from the document's beginning",
        bits_named(row for result in results.values() for row in result["position"]),
    )
    for name, result in results.items():
        rows = result["position"]
        axes.plot([r["to"] for r in rows], [bits_of(r) for r in rows], "o-", label=drawn(name))
    axes.set_xscale("log", base=2)
    add_legend(axes)
    return figure


def in_context(results: Results) -> Figure:
    """Gain over the first segment of the same documents, by place."""
    figure, axes = axes_of(
        "What reading on is worth",
        "tokens from the document's beginning",
        f"gain in {bits_named(row for result in results.values() for row in result['context'])}",
    )
    for name, result in results.items():
        rows = result["context"]
        axes.plot([r["to"] for r in rows], [r["gain"] for r in rows], "o-", label=drawn(name))
    axes.set_xscale("log", base=2)
    add_legend(axes)
    return figure


def attention(result: dict[str, Any], name: str) -> Figure:
    """Share of attention by age of what is attended to, oldest first (paper, figure 2)."""
    figure, axes = axes_of(f"Attention of {name}", "tokens ago", "share of attention")
    place, spans = 0, result["attention"].get("spans", {})
    ticks: dict[int, str] = {}
    for store, layers in result["attention"]["ages"].items():
        buckets = len(layers[0])
        if not buckets:
            continue
        places = range(place, place + buckets)
        mean = [sum(column) / len(layers) for column in zip(*layers, strict=True)]
        axes.bar(places, mean, label=drawn(f"{store}, mean over layers"))
        for layer in layers:
            axes.plot(places, layer, ".", color="black", markersize=3)
        if store in spans:
            newest, oldest = spans[store]
            # Of a bucket's edges the older; the newest edge is that of the next store.
            step = (oldest - newest) / buckets
            ticks |= {place + n: f"{oldest - n * step:,.0f}" for n in range(buckets)}
        place += buckets
    # At the older edge of each bar.
    axes.set_xticks([at - 0.5 for at in ticks], [*ticks.values()], rotation=60, fontsize=7)
    if not ticks:
        axes.set_xlabel("from old to new")
    add_legend(axes)
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
        "Compressed memory changed",
        "compressed memory",
        f"{bits_named(r['position'][0] for r in results.values())} more than intact",
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
    fixed, *moving = result["dynamic"]["passes"]
    bits = bits_named(fixed["curve"])
    figure, axes = axes_of(
        f"Dynamic evaluation of {name}", "tokens scored", f"{bits} less than fixed weights"
    )
    for found in moving:
        gains = [
            (here["tokens"], bits_of(there) - bits_of(here))
            for here, there in zip(found["curve"], fixed["curve"], strict=True)
        ]
        axes.plot(*zip(*gains, strict=True), label=f"learning rate {found['lr']:g}")
    axes.axhline(0.0, color="black", linewidth=0.8)
    add_legend(axes)
    return figure


def regret(results: Results) -> Figure:
    """Nats beyond the exact Bayes prediction by place in the episode, of runs of one probe."""
    figure, axes = axes_of("Regret", "symbols read", "nats beyond the best prediction")

    def line(places: list[dict[str, Any]], what: str, label: str, **style: Any) -> None:
        middle = [(place["from"] + place["to"]) / 2 for place in places]
        # On a logarithmic axis what is not above zero is not drawn.
        worth = [place[what] if place[what] > 0 else math.nan for place in places]
        axes.plot(middle, worth, label=label, **style)

    for name, result in results.items():
        line(result["bayes"]["places"], "regret", drawn(name))
    windows = {
        (result["bayes"]["reach"][kind], kind): result["bayes"]["places"]
        for result in results.values()
        for kind in result["bayes"]["reach"]
    }
    seen: set[int] = set()
    for number, ((reach, kind), places) in enumerate(sorted(windows.items(), key=lambda w: w[0])):
        if reach not in seen and any(place[kind] > 0 for place in places):
            seen.add(reach)
            style = {"color": "black", "linewidth": 0.8, "linestyle": (0, (number + 1, 2))}
            line(places, kind, f"exact, sees {reach}", **style)
    axes.set_yscale("log")
    add_legend(axes)
    return figure


def distance(results: Results) -> Figure:
    """Share of answers' tokens that are known, by the distance to what they need."""
    figure, axes = axes_of("Recall", "distance in tokens, from", "tokens right")
    for name, result in results.items():
        rows = result["distance"]["buckets"]
        axes.plot([r["from"] for r in rows], [r["accuracy"] for r in rows], "o-", label=drawn(name))
    reaches = [result["distance"]["reach"] for result in results.values()]
    # What one run sees says nothing of another that sees further.
    reach = reaches[0] if all(each == reaches[0] for each in reaches) else {}
    for number, (store, far) in enumerate(sorted(reach.items(), key=lambda each: each[1])):
        label = drawn(f"reach: {store} ({far:,})")
        dashes: Any = (0, (number + 1, 2))
        axes.axvline(far, color="black", linewidth=0.8, linestyle=dashes, label=label)
    axes.set_xscale("log", base=2)
    axes.set_ylim(-0.02, 1.02)
    # Beside the axes, where nothing is drawn.
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8)
    return figure
