"""Several models on one split: what each costs, how sure that is, and where they differ.

Intervals are over documents that are drawn again, the same draws for all models, so that those of
differences are paired. Shapes: M models, D documents, R resamples.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from data.common.requirements import in_bytes
from data.common.say import plain
from eval import figures
from eval.figures import Results, add_legend, axes_of, drawn
from eval.pages import Section
from eval.protocol import LEVEL, RESAMPLES, convert
from eval.results import Result, digits, lengths, spoken
from eval.tables import SAME_TEXT, by_run

ALIKE = (*SAME_TEXT, "reset_documents", "limit", "documents")
"""Entries of the protocol that must be the same: the text, and where models begin anew."""
WORDS, BYTES, SAMPLES = "word_perplexity", "bits_per_byte", "bits_per_sample"
SPOKEN = {BYTES: "bits per byte", WORDS: "bits a word", SAMPLES: "bits per sample"}


@dataclass(frozen=True)
class Compared:
    """What one model is beside the others."""

    value: dict[str, float]
    """By unit."""
    bounds: dict[str, tuple[float, float]]
    """Of an interval, by unit; empty for fewer than two documents."""
    difference: float
    """From the first model: bits per byte, or bits a word where the text has no bits per byte."""
    difference_bounds: tuple[float, float] | None


def require_alike(results: Results, anyway: bool) -> None:
    """Refuse to compare what is not of one text, read alike up to the model's own way.

    Raises:
        ValueError: protocols differ in an entry that decides what is predicted (`anyway` lets
            them), the documents differ, or a record does not have them.
    """
    (first, reference), *others = results.items()
    for name, result in results.items():
        if result.get("documents") is None:
            raise ValueError(
                f"the score of {name} was written by an earlier version, without what each "
                "document costs: score it again with longrange score"
            )
    for name, result in others:
        for key in () if anyway else ALIKE:
            a, b = reference["protocol"].get(key), result["protocol"].get(key)
            if a != b:
                raise ValueError(
                    f"{first} and {name} cannot be compared: their protocols differ in {key} "
                    f"({a} and {b}); score them alike, or give --anyway true to see them all the "
                    "same"
                )
        for size in ("bytes", "words"):
            if reference["documents"][size] != result["documents"][size]:
                raise ValueError(f"{first} and {name} were scored on other documents ({size})")


def require_same_vocabulary(results: Results) -> None:
    """ValueError unless all models have one vocabulary: figures per token are of other tokens."""
    (first, reference), *others = results.items()
    for name, result in others:
        a, b = (r["model"].get("vocabulary_sha256") for r in (reference, result))
        if a is None or a != b:
            raise ValueError(
                f"{first} and {name} have different tokens ({reference['model']['vocabulary']} and "
                f"{result['model']['vocabulary']}), so figures per token say nothing of them: "
                "compare bits per byte or word perplexity, and leave --per-token out"
            )


def compared(results: Results, seed: int = 0) -> dict[str, Compared]:
    """Values and intervals of all models, by name; differences are from the first, in the first
    unit that all have.

    Raises:
        ValueError: they have no unit in common.
    """
    first = next(iter(results.values()))
    units = [unit for unit in SPOKEN if all(unit in r["units"] for r in results.values())]
    if not units:
        raise ValueError(
            f"{', '.join(map(plain, results))} have no unit in common that could be compared "
            f"({', '.join(map(spoken, SPOKEN))})"
        )
    used = np.array(first["documents"]["bytes"]) > 0
    nats_MD = np.array([r["documents"]["nats"] for r in results.values()])[:, used]
    size = {
        BYTES: np.array(first["documents"]["bytes"], dtype=float)[used],
        WORDS: np.array(first["documents"]["words"], dtype=float)[used],
    }
    # Each sample has as many bytes.
    size[SAMPLES] = size[BYTES]
    times_RD = draws(int(used.sum()), seed)
    found = {}
    unit = units[0]
    for row, (name, result) in enumerate(results.items()):
        bounds = {
            u: interval(nats_MD[row], size[u], times_RD, scale(result, u, size)) for u in units
        }
        # Of a perplexity the difference is that of its logarithm.
        gap = nats_MD[row] - nats_MD[0]
        total = float(gap.sum()) / (size[unit].sum() * scale(result, unit, size)) / math.log(2)
        found[name] = Compared(
            {u: result["units"][u] for u in units},
            {u: (convert(b[0], u, 1), convert(b[1], u, 1)) for u, b in bounds.items() if b},
            total,
            in_bits(interval(gap, size[unit], times_RD, scale(result, unit, size))),
        )
    return found


def scale(result: Result, unit: str, size: Mapping[str, np.ndarray]) -> float:
    """The published denominator over the documents' own sum, which differ a little."""
    sizes = {BYTES: result["bytes"], WORDS: result["words"], SAMPLES: result["protocol"]["tokens"]}
    return float(sizes[unit] / size[unit].sum())


def draws(documents: int, seed: int) -> np.ndarray:
    """How often each document is in each resample, [R, D]; none of fewer than two documents, which
    say nothing of others.
    """
    if documents < 2:
        return np.zeros((0, documents), dtype=np.uint16)
    random = np.random.default_rng(seed)
    picks = (random.integers(documents, size=documents) for _ in range(RESAMPLES))
    return np.array([np.bincount(p, minlength=documents) for p in picks], dtype=np.uint16)


def interval(
    nats_D: np.ndarray, size_D: np.ndarray, times_RD: np.ndarray, factor: float
) -> tuple[float, float] | None:
    """Bounds of the mean nats of a byte or word over resamples; None without any."""
    if not len(times_RD):
        return None
    means = [times_D @ nats_D / max(times_D @ size_D, 1) / factor for times_D in times_RD]
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def in_bits(bounds: tuple[float, float] | None) -> tuple[float, float] | None:
    """Bounds in nats as bounds in bits."""
    return None if bounds is None else (bounds[0] / math.log(2), bounds[1] / math.log(2))


def table_of(results: Results, per_token: bool) -> Section:
    """One row a model: size, cost, difference, speed, memory of its state and reach."""
    found, first = compared(results), next(iter(results))
    units = list(found[first].value)
    unit = SPOKEN[units[0]]
    cells = {
        name: cells_of(results[name], found[name], f"{unit} beside {first}", name == first)
        for name in results
    }
    if per_token:
        require_same_vocabulary(results)
        for name, result in results.items():
            cells[name]["token perplexity"] = digits(
                "token_perplexity", result["units"]["token_perplexity"]
            )
    if BYTES in units:
        for name, value in results[first].get("compressors", {}).items():
            cells[name] = {spoken(BYTES): digits(BYTES, value)}
    protocol = results[first]["protocol"]
    text = (
        f"{plain(protocol['corpus'])}, {protocol['split']} split, "
        f"{len(results[first]['documents']['nats']):,} documents. In parentheses and behind a "
        f"difference: {LEVEL:.0%} of {RESAMPLES:,} resamples of the documents, the same for all "
        "models. Memory of state is what it takes to go on with one text; reach is the tokens that "
        "may have a part in a prediction."
    )
    return by_run("Models", cells, text)


def cells_of(result: Result, found: Compared, beside: str, first: bool) -> dict[str, str]:
    """A row of the table, by column."""
    model, speed = result["model"], result.get("speed")
    cells = {"parameters": f"{model['parameters']:,}"}
    for unit, value in found.value.items():
        bounds = found.bounds.get(unit)
        cells[spoken(unit)] = digits(unit, value)
        if bounds:
            cells[spoken(unit)] += f" ({digits(unit, bounds[0])} to {digits(unit, bounds[1])})"
    if not first:
        cells[beside] = f"{found.difference:+.4f}"
        if found.difference_bounds is not None:
            low, high = found.difference_bounds
            cells[beside] += f" ({low:+.4f} to {high:+.4f})"
    if speed is not None:
        cells["tokens/s"] = f"{speed['tokens_per_second']:,.0f} ({plain(speed['device'])})"
    if model.get("state_bytes") is not None:
        cells["memory of state"] = in_bytes(model["state_bytes"])
    if (reach := model.get("reach")) is not None:
        cells["reach"] = reach if isinstance(reach, str) else f"{reach:,}"
    cells["vocabulary"] = model["vocabulary"]
    return cells


def readings(results: Results) -> Section:
    """How each model read the text, and what weights it has."""
    cells = {}
    for name, result in results.items():
        weights = f"{plain(result['checkpoint']['name'])} ({result['checkpoint']['sha256'][:12]})"
        precision = result["protocol"].get("precision") or "float32"
        cells[name] = {"read": lengths(result), "numbers": precision, "weights": weights}
    return by_run("How they read", cells)


def by_place(results: Results) -> list[Section]:
    """Cost by place in the document, of the models that have it; none without."""
    having = {name: result for name, result in results.items() if result.get("places")}
    if not having:
        return []
    cells = {
        name: {
            f"{row['from'] // 1024:,} to {row['to'] // 1024:,} KiB": digits(BYTES, bits(row))
            for row in result["places"]
        }
        for name, result in having.items()
    }
    text = (
        "Bits per byte of tokens by how many bytes from their document's beginning they begin. "
        "Later parts of a document are also other text."
    )
    return [by_run("Place in the document", cells, text, figures.svg(place_figure(having)))]


def bits(row: Mapping[str, float]) -> float:
    """Bits per byte of a row of places."""
    return row["nats"] / math.log(2) / row["bytes"]


def place_figure(results: Results) -> Figure:
    """Bits per byte by place in the document."""
    title, x = "Place in the document", "KiB from the document's beginning, up to"
    figure, axes = axes_of(title, x, "bits per byte")
    for name, result in results.items():
        ends = [row["to"] / 1024 for row in result["places"]]
        axes.plot(ends, list(map(bits, result["places"])), "o-", label=drawn(name))
    axes.set_xscale("log", base=2)
    add_legend(axes)
    return figure


def by_frequency(results: Results) -> list[Section]:
    """Cost by frequency of words, of the models that have it; none without.

    Raises:
        ValueError: words were counted in different training text.
    """
    having = {name: result for name, result in results.items() if result.get("frequency")}
    if not having:
        return []
    words = {
        name: [(row["name"], row["words"]) for row in result["frequency"]]
        for name, result in having.items()
    }
    first = next(iter(words))
    for name, counted in words.items():
        if counted != words[first]:
            raise ValueError(
                f"{first} and {name} cannot be compared by the frequency of words: these were "
                "counted in different training text; score them on the same shards"
            )
    _, perplexities = figures.by_bucket(having)
    cells = {
        name: {
            bucket: "over 1e308" if value is None else digits(WORDS, value)
            for bucket, value in here.items()
        }
        for name, here in perplexities.items()
    }
    text = "Perplexity a word, by its occurrences in the training text."
    figure = figures.svg(figures.frequency(having))
    return [by_run("Words by frequency", cells, text, figure)]
