"""Figures of results that are no runs: sparsities, memory, time, experiments."""

import math
from typing import Annotated, Any, Self

from matplotlib.figure import Figure
from pydantic import ConfigDict, Field, model_validator

from data.common.schema import Record, as_record
from eval.figures import (
    Results,
    add_legend,
    axes_of,
    drawn,
    grouped_bars,
)
from eval.results import bits_named, bits_of, spoken
from eval.score_record import Checkpoint, Cost, Model, Protocol, Share, Some

DEVICE = ("parameters", "gradients", "moments", "places")
HOST = ("reservoir", "bits")
DRAWN = (
    "what is drawn is JSON of eval.prune, or one of tools.bench sparse, or one table.json of "
    "tools.experiments"
)


class PrunedPoint(Record):
    """A score at one sparsity."""

    sparsity: Share
    zero: Share
    value: float


class Pruning(Record):
    """Scores of a pruned model, of eval.prune."""

    pruning: Annotated[list[PrunedPoint], Some]
    alpha: float
    kinds: list[str]
    scope: str
    unit: str
    protocol: Protocol
    model: Model
    checkpoint: Checkpoint


class Variant(Cost):
    """A line of an experiment's table.json, as far as it is drawn."""

    model_config = ConfigDict(extra="ignore")

    variant: str
    deviation: Annotated[float, Field(ge=0)] | None = None


class MemoryLine(Record):
    """Bytes for each weight in one form of the matrices, of tools.bench sparse."""

    model_config = ConfigDict(extra="ignore")

    form: str
    parameters: float
    gradients: float
    moments: float
    places: float
    reservoir: float
    bits: float


class TimeLine(Record):
    """Speed against dense matrices in one form, of tools.bench sparse."""

    model_config = ConfigDict(extra="ignore", populate_by_name=True)

    form: str
    share: Annotated[str | None, Field(alias="forward/backward")] = None
    x: float | None = None
    both: Annotated[float | None, Field(alias="both x")] = None

    @model_validator(mode="after")
    def _timed(self) -> Self:
        if self.x is None and self.both is None and not self.form.endswith("dense"):
            raise ValueError("x or both x must be given")
        return self


class Sparse(Record):
    """Figures of tools.bench sparse, each of which may be absent."""

    model_config = ConfigDict(extra="ignore")

    memory: Annotated[list[MemoryLine], Some] | None = None
    step: Annotated[list[TimeLine], Some] | None = None
    matrix: Annotated[list[TimeLine], Some] | None = None

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.memory is None and self.step is None and self.matrix is None:
            raise ValueError("it has none of memory, step and matrix")
        return self


def figure_of(results: Results) -> Figure:
    """The figure that a kind of results has: of eval.prune, or of one benchmark or experiment.

    Raises:
        ValueError: results of another kind, several of a kind that is drawn alone, or one that is
            not whole.
    """
    contents = list(results.values())
    if all(isinstance(content, dict) and "pruning" in content for content in contents):
        for name, content in results.items():
            checked(Pruning, content, name)
        units = {content["unit"] for content in contents}
        if len(units) > 1:
            raise ValueError(f"the results are in different units: {', '.join(sorted(units))}")
        return pruning(results)
    if len(contents) != 1:
        raise ValueError(f"several results are drawn of eval.prune only; {DRAWN}")
    ((name, content),) = results.items()
    if isinstance(content, list):
        checked(Annotated[list[Variant], Field(min_length=1)], content, name)
        return experiment(content)
    checked(Sparse, content, name)
    if content.get("memory") is not None:
        return memory(content["memory"])
    return time(next(content[part] for part in ("step", "matrix") if content.get(part) is not None))


def checked(kind: Any, content: Any, name: str) -> None:
    """Raises ValueError if a file's content is not as it must be."""
    try:
        as_record(kind, content)
    except ValueError as error:
        raise ValueError(f"{name} cannot be drawn: {error}; {DRAWN}") from None


def pruning(results: Results) -> Figure:
    """Score against the share of weights that are zero, a line for each run."""
    unit = spoken(next(iter(results.values()))["unit"])
    figure, axes = axes_of("One-shot magnitude pruning", "share of weights that are zero", unit)
    for name, result in results.items():
        points = [(point["zero"], point["value"]) for point in result["pruning"]]
        label = drawn(f"{name} (alpha {result['alpha']:g})")
        axes.plot(*zip(*points, strict=True), "o-", label=label)
    # The last points cost many times what the first do.
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(plain_numbers)
    axes.yaxis.set_minor_formatter(plain_numbers)
    add_legend(axes)
    return figure


def plain_numbers(value: float, _: float) -> str:
    """A number at an axis without powers of ten."""
    return f"{value:g}"


def memory(lines: list[dict[str, Any]]) -> Figure:
    """Bytes for each weight by what they are for, a bar for each form of the matrices."""
    figure, axes = axes_of("Memory", "bytes for each weight", "")
    names = [drawn(line["form"]) for line in lines]
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
    speeds: dict[str, dict[str, float]] = {}
    for line in lines:
        form, _, share = line["form"].rpartition(" ")
        if line.get("forward/backward") is not None:
            form, share = line["form"], line["forward/backward"]
        if share != "dense":
            both = line.get("both x")
            speeds.setdefault(form, {})[share] = line["x"] if both is None else both
    shares = list(dict.fromkeys(share for here in speeds.values() for share in here))
    bars = {form: [here.get(share, math.nan) for share in shares] for form, here in speeds.items()}
    grouped_bars(axes, shares, bars)
    axes.axhline(1, color="black", linewidth=1)
    return figure


def experiment(rows: list[dict[str, Any]]) -> Figure:
    """Scores of an experiment's variants with their deviation over seeds, best first."""
    figure, axes = axes_of("Variants after equal steps", bits_named(rows), "")
    ranked = sorted(rows, key=bits_of)
    scores = [bits_of(row) for row in ranked]
    spreads = [row.get("deviation") or 0 for row in ranked]
    axes.barh([drawn(row["variant"]) for row in ranked], scores, xerr=spreads)
    lowest = scores[0]
    highest = max(score + spread for score, spread in zip(scores, spreads, strict=True))
    room = 0.1 * (highest - lowest) or 0.1
    axes.set_xlim(lowest - 3 * room, highest + room)
    axes.invert_yaxis()
    return figure
