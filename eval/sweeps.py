"""Lengths that are tried on the validation split, and a score in a few lines."""

import bz2
import lzma
import os
from pathlib import Path
from typing import Any

import torch

from data.common.outputs import in_place, resolved, writing
from data.common.say import plain
from data.shards import Split
from eval.eval_config import NAMES
from eval.protocol import LEVEL
from eval.results import Result, digits, lengths, spoken
from lm.training import dist


def point(result: Result) -> dict[str, Any]:
    """What a sweep keeps of a score at one choice of lengths; less is better."""
    said = result["protocol"]
    kept = {name: said[name] for name in (*NAMES, "unit") if name in said}
    return {"value": result["value"]} | kept


def sweep_table(swept: dict[str, Any]) -> str:
    """The points in lines, the chosen one marked."""
    points, unit = swept["points"], spoken(swept["points"][0]["unit"])
    names = [name for name in NAMES if any(name in point for point in points)]
    lines = ["".join(f"{name:>12}" for name in names) + f"  {unit}, {swept['split']}"]
    for number, point in enumerate(points):
        tried = "".join(f"{point.get(name, 0):>12}" for name in names)
        mark = "  <- chosen" if number == swept["best"] else ""
        lines.append(f"{tried}{digits(point['unit'], point['value']):>10}{mark}")
    return "\n".join(lines)


def figure_beside(json: Path) -> Path | None:
    """Where the figure of a sweep goes; nowhere beside a device.

    Raises:
        ValueError: it would lie where the record goes.
    """
    if in_place(resolved(json)):
        return None
    if json.suffix == ".svg":
        raise ValueError(f"{json} would be replaced by the figure; end its name in .json")
    return json.with_suffix(".svg")


def draw(swept: dict[str, Any], path: Path) -> None:
    """Write the figure of a sweep."""
    # Imported here because matplotlib takes a second, and most scores draw nothing.
    from eval import figures

    with writing(path) as place:
        place.write_text(figures.svg(figures.sweep(swept)), encoding="utf-8")


def this_rank() -> dist.World:
    """This process among those of a launcher, or alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return dist.join()
    return dist.World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def compressors(split: Split) -> dict[str, float]:
    """Bits per byte that general compressors reach on the split's bytes, on their own; none where
    the tokens do not give these back.
    """
    if not split.exact:
        return {}
    text = split.vocabulary.decode(split.tokens)
    sizes = {"xz -9": len(lzma.compress(text, preset=9)), "bzip2 -9": len(bz2.compress(text, 9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def table(result: Result) -> str:
    """A result in a few lines, protocol included."""
    protocol, bounds = result["protocol"], result["interval"]["bounds"]
    value = f"{digits(protocol['unit'], result['value'])} {spoken(protocol['unit'])}"
    lines = [f"{plain(protocol['corpus'])} {protocol['split']}: {value}"]
    if bounds:
        low, high = (digits(protocol["unit"], bound) for bound in bounds)
        lines[0] += f" ({LEVEL:.0%} of resampled documents: {low} to {high})"
    rows = [(spoken(name), digits(name, value)) for name, value in result["units"].items()]
    rows += [
        (f"{name}, bits per byte", digits("bits_per_byte", value))
        for name, value in result.get("compressors", {}).items()
    ]
    lines += [f"  {name:<24}{value:>10}" for name, value in rows]
    official = "the published count" if result["official_words"] else "its own count"
    lines.append(
        f"  {protocol['tokens']:,} tokens scored; {result['bytes']:,} bytes; "
        f"{result['words']:,} words ({official})"
    )
    if result["unknown_words"] is not None:
        lines[-1] += f"; {result['unknown_words']:.2%} of words unknown"
    if not result["exact"]:
        lines.append("  no bits per byte or character: the tokens do not give the text back")
    lines.append(f"  {lengths(result)}")
    lines.append(
        f"  {result['model']['parameters']:,} parameters, {result['checkpoint']['name']} "
        f"({result['checkpoint']['sha256'][:12]}), shards {protocol['shards'][:12]}, "
        f"commit {(result['commit'] or 'unknown')[:12]}"
    )
    return "\n".join(lines)
