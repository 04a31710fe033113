"""Sections of a report: scores, training, sweeps, breakdowns and what else a run's folder holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.common.outputs import writing_folder
from data.common.say import plain
from data.common.schema import Record
from eval import figures
from eval.adapt_results import Adapted
from eval.eval_config import NAMES
from eval.figures import Results
from eval.learning import dynamics, ways
from eval.logs import Line, step_of, trained, training_log
from eval.pages import Section, html, markdown, with_files
from eval.parts import perplexity_shown
from eval.results import (
    LENGTHS,
    Bayes,
    Breakdown,
    Distance,
    Dynamic,
    Result,
    bits_named,
    digits,
    lengths,
    read_result,
    spoken,
)
from eval.worth_results import BESIDE

SAME_TEXT = ("corpus", "text", "split", "unit", "denominator")
"""What the number is about. Shards may differ: another vocabulary reads the same text."""


def read_there(folders: dict[str, Path], file: str, kind: type[Record]) -> dict[str, Result]:
    """The results of that name, of the runs that have one."""
    paths = {name: folder / file for name, folder in folders.items()}
    return {name: read_result(path, kind) for name, path in paths.items() if path.exists()}


def require_comparable(results: dict[str, Result], anyway: bool = False) -> None:
    """Refuse to put results side by side that were not measured alike.

    Raises:
        ValueError: two of them differ in their protocol, and nobody said that this is meant.
    """
    if anyway or len(results) < 2:
        return
    (first, reference), *others = results.items()
    for name, result in others:
        for key in (*SAME_TEXT, *LENGTHS):
            a, b = reference["protocol"].get(key), result["protocol"].get(key)
            if a != b:
                raise ValueError(
                    f"{first} and {name} were scored under different protocols ({key} {a} and {b});"
                    " score them alike, or give --anyway to compare them all the same"
                )


def require_same_weights(name: str, score: Result, other: Result, anyway: bool) -> None:
    """Refuse to show results of a run side by side that are of different weights.

    Raises:
        ValueError: they are, and nobody said that this is meant.
    """
    ours, theirs = score["checkpoint"], other.get("checkpoint") or score["checkpoint"]
    if ours["sha256"] != theirs["sha256"] and not anyway:
        raise ValueError(
            f"{name} has results of different weights ({ours['name']} and {theirs['name']}); make "
            "the older ones again, or give --anyway to show them all the same"
        )


def print_table(run: Path, result: Result, metrics: list[Line]) -> None:
    """A run in a few lines, with the paths of its curve and samples."""
    rows = summary(result, metrics)
    for path in (run / "curve.png", *sorted((run / "samples").glob("*"))):
        if path.exists():
            rows.append((plain(path.stem), plain(path)))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def training_of(run: Path, result: Result) -> list[Line]:
    """What a run has logged up to the weights that were scored.

    Raises:
        ValueError: the log is missing, empty or damaged.
    """
    return training_log(run, step_of(result["checkpoint"]["name"]))


def summary(result: Result, metrics: list[Line]) -> list[tuple[str, str]]:
    """Rows of a table: what was trained, how fast, and the score with its protocol."""
    protocol = result["protocol"]
    size = f"{result['model']['parameters']:,} parameters, {result['model']['layers']} layers"
    rows = [
        ("model", f"{size} of width {result['model']['width']}"),
        ("training", in_words(trained(metrics))),
        (
            f"{plain(protocol['corpus'])} {protocol['split']}",
            f"{digits(protocol['unit'], result['value'])} {spoken(protocol['unit'])}",
        ),
    ]
    for name, value in result.get("compressors", {}).items():
        rows.append((f"  {name}", f"{value:.4f} bits per byte"))
    return [*rows, ("protocol", lengths(result))]


def in_words(found: dict[str, float | None]) -> str:
    """Length and speed of a training, as far as they are known."""
    said = f"{found['steps']:,} steps"
    if found["seconds"] is not None:
        said += f" in {found['seconds'] / 60:.1f} minutes"
    if found["tokens_per_second"] is not None:
        said += f", {found['tokens_per_second']:,.0f} tokens/s"
    if found["mfu"] is not None:
        said += f", {found['mfu']:.0%} of the matmul rate"
    return said


def scores(results: Results) -> Section:
    """All units of all runs, with interval and protocol."""
    units = [unit for result in results.values() for unit in result["units"]]
    units = list(dict.fromkeys(units))
    header = ("run", *map(spoken, units), "95 % interval", "parameters", "protocol")
    rows = []
    for name, result in results.items():
        unit = result["protocol"]["unit"]
        bounds = " to ".join(digits(unit, bound) for bound in result["interval"]["bounds"])
        values = (digits(u, result["units"][u]) if u in result["units"] else "" for u in units)
        parameters = f"{result['model']['parameters']:,}"
        rows.append((name, *values, bounds, parameters, lengths(result)))
    protocol = next(iter(results.values()))["protocol"]
    text = (
        f"{plain(protocol['corpus'])}, {protocol['split']} split. The interval is that of "
        f"{spoken(protocol['unit'])}, over documents drawn again."
    )
    compared = next(iter(results.values())).get("compressors", {})
    blank = ("",) * (len(header) - 2)
    if "bits_per_byte" in units:
        rows += [(name, f"{value:.4f}", *blank) for name, value in compared.items()]
    return Section("Scores", text, header, tuple(rows))


def by_run(
    title: str, cells: dict[str, dict[str, str]], text: str = "", figure: str = ""
) -> Section:
    """A section whose table has a row for each run; a cell that a run lacks is blank."""
    columns = list(dict.fromkeys(column for here in cells.values() for column in here))
    rows = ((name, *(here.get(column, "") for column in columns)) for name, here in cells.items())
    return Section(title, text, ("run", *columns), tuple(rows), figure)


def training(metrics: dict[str, list[Line]]) -> Section:
    """Length and speed of each training, and its curve."""
    cells = {}
    for name, records in metrics.items():
        found = trained(records)
        seconds, speed = found["seconds"], found["tokens_per_second"]
        cells[name] = {
            "steps": f"{found['steps']:,}",
            "minutes": "" if seconds is None else f"{seconds / 60:.1f}",
            "tokens/s": "" if speed is None else f"{speed:,.0f}",
        }
    return by_run("Training", cells, figure=figures.svg(figures.training_curves(metrics)))


def sweeps(results: Results) -> list[Section]:
    """Lengths that were tried for a score."""
    sections = []
    for name, result in results.items():
        if swept := result.get("sweep"):
            points = swept["points"]
            names = [each for each in NAMES if any(each in point for point in points)]
            header = (*names, spoken(points[0]["unit"]))
            rows = [
                (
                    *(str(point.get(each, 0)) for each in names),
                    digits(point["unit"], point["value"])
                    + (" (chosen)" if n == swept["best"] else ""),
                )
                for n, point in enumerate(points)
            ]
            text = f"Chosen on the {swept['split']} split."
            figure = figures.svg(figures.sweep(swept))
            sections.append(Section(f"Lengths of {name}", text, header, tuple(rows), figure))
    return sections


def breakdowns(results: Results, split: str) -> list[Section]:
    """Sections for each breakdown that some run has."""
    sections = []

    def having(key: str) -> dict[str, dict[str, Any]]:
        return {name: result for name, result in results.items() if result[key]}

    if found := having("frequency"):
        _, perplexities = figures.by_bucket(found)
        cells = {
            name: {bucket: perplexity_shown(value) for bucket, value in here.items()}
            for name, here in perplexities.items()
        }
        text = "Perplexity a word, by its occurrences in the training text."
        figure = figures.svg(figures.frequency(found))
        sections.append(by_run(f"Words by frequency ({split})", cells, text, figure))
    if found := having("position"):
        sections.append(
            Section(f"Place in the document ({split})", figure=figures.svg(figures.position(found)))
        )
    if found := {name: result for name, result in results.items() if result.get("context")}:
        sections.append(in_context(found, split))
    for name, result in having("attention").items():
        figure = figures.svg(figures.attention(result, name))
        sections.append(Section(f"Attention of {name} ({split})", figure=figure))
    if found := having("reconstruction"):
        figure = figures.svg(figures.reconstruction(found))
        sections.append(Section(f"Reconstruction by layer ({split})", figure=figure))
    if found := having("ablation"):
        cells = {
            name: {spoken(kind): f"{cost:.4f}" for kind, cost in result["ablation"].items()}
            for name, result in found.items()
        }
        compared = all("intact" in result["ablation"] for result in found.values())
        figure = figures.svg(figures.ablation(found)) if compared else ""
        bits = bits_named(result["position"][0] for result in found.values())
        text = (
            f"Costs in {bits} while the model reads another compressed memory than its own; the "
            "last column is the share of segments whose exchanged memory was of another document."
        )
        sections.append(by_run(f"Compressed memory changed ({split})", cells, text, figure))
    if found := {name: result for name, result in results.items() if result.get("worth")}:
        cells = {
            name: {
                "beside": BESIDE[result["worth"]["local"]],
                "KL": f"{result['worth']['worth']:.4f}",
                "saved": f"{result['worth']['difference']:.4f}",
            }
            for name, result in found.items()
        }
        text = (
            "What memory tells of a token, in nats: the divergence of the prediction with it from "
            "that of a second reading without, and what it saves on the tokens that came."
        )
        sections.append(by_run(f"Memory's worth ({split})", cells, text))
    return sections


def in_context(results: Results, split: str) -> Section:
    """What reading on is worth, by place."""
    cells = {
        name: {f"{p['from']:,} to {p['to'] - 1:,}": f"{p['gain']:+.4f}" for p in result["context"]}
        for name, result in results.items()
    }
    bits = bits_named(row for result in results.values() for row in result["context"])
    text = (
        f"Gain in {bits} over the first segment of the documents that are so long, by place in "
        "tokens: what the model has learnt of them by reading."
    )
    figure = figures.svg(figures.in_context(results))
    return by_run(f"What reading on is worth ({split})", cells, text, figure)


def distances(results: Results, split: str) -> list[Section]:
    """Recall by distance."""
    found = {
        name: {(b["from"], b["to"]): b["accuracy"] for b in result["distance"]["buckets"]}
        for name, result in results.items()
    }
    bounds = sorted({each for here in found.values() for each in here})
    header = ("run", *(f"{first} to {stop - 1}" for first, stop in bounds))
    rows = [
        (name, *(f"{here[each]:.1%}" if each in here else "" for each in bounds))
        for name, here in found.items()
    ]
    figure = figures.svg(figures.distance(results))
    text = "Share of the answers' tokens that are right, by distance in tokens."
    return [Section(f"Recall ({split})", text, header, tuple(rows), figure)]


def regrets(results: Results, split: str) -> list[Section]:
    """Regret against exact predictions, a table for the probes that are alike."""
    alike: dict[str, dict[str, dict[str, Any]]] = {}
    for name, result in results.items():
        source = {k: v for k, v in result["bayes"]["source"].items() if v is not None}
        told = ", ".join(f"{spoken(k)} {v}" for k, v in source.items())
        alike.setdefault(f"{told}, episodes of {result['bayes']['length']}", {})[name] = result
    header = ("run", "sees", "last segment", "whole episode")
    sections = []
    for told, here in alike.items():
        rows: list[tuple[str, ...]] = []
        for name, result in here.items():
            found = result["bayes"]
            last, total = found["last"], found["total"]
            rows.append(
                (
                    name,
                    f"{found['reach']['compressed']}",
                    f"{last['regret']:.4f} ± {last['deviation']:.4f}",
                    f"{total['regret']:.3f} ± {total['deviation']:.3f}",
                )
            )
            rows.extend(
                (
                    f"exact, sees as much as {name} with {kind}",
                    f"{seen}",
                    f"{last[kind]:.4f}",
                    f"{total[kind]:.3f}",
                )
                for kind, seen in found["reach"].items()
            )
        text = "Nats beyond the exact Bayes prediction: a symbol of the last segment, and in all."
        figure = figures.svg(figures.regret(here))
        sections.append(Section(f"Regret on {told} ({split})", text, header, tuple(rows), figure))
    return sections


def compression(results: Results, split: str) -> Section:
    """Sizes of a text with models and an arithmetic coder, and with general compressors."""
    rows = []
    for name, result in results.items():
        for kind, bits in result["bits_per_byte"].items():
            made = name if kind == "this model" else f"beside {name}: {kind}"
            rows.append((made, f"{result['bytes']:,}", f"{bits:.4f}"))
    text = f"A part of the {split} split, written by eval.compress and got back to the bit."
    header = ("compressor", "bytes", "bits per byte")
    return Section("Compressed files", text, header, tuple(rows))


KINDS: dict[str, tuple[type[Record], Callable[[Results, str], list[Section]]]] = {
    "breakdown": (Breakdown, breakdowns),
    "dynamic": (Dynamic, dynamics),
    "adapt": (Adapted, ways),
    "distance": (Distance, distances),
    "bayes": (Bayes, regrets),
}
"""What each kind of result file holds, and what makes sections of it."""


def write(out: Path, title: str, sections: list[Section]) -> None:
    """Write the report and its figures, which appear together."""
    files = {file: section.figure for file, section in with_files(sections) if section.figure}
    files |= {"report.md": markdown(title, sections), "report.html": html(title, sections)}
    with writing_folder(out) as folder:
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
