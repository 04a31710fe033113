"""Program: what came out of a run in a short table, or of several in a page with figures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.common import command
from data.common.files import atomic_path, read_json
from eval import figures
from eval.figures import Results
from eval.pages import Section, html, markdown
from eval.protocol import default_json, lengths, read_result, require_comparable, spoken
from lm.training.runlog import read_metrics


def main(
    run: Path,
    beside: list[Path] | None = None,
    split: str = "test",
    out: Path | None = None,
    anyway: bool = False,
) -> None:
    """Show size, training and score of a run, or join several runs into a report with figures.

    A run's folder holds what the report shows: score-SPLIT.json of eval.score, and as far as they
    are there breakdown-*.json, dynamic-*.json and distance-*.json of the programs of these names.

    Args:
        run: folder of the run.
        beside: folders of other runs, as '[runs/a, runs/b]'.
        split: the split whose result was written to score-SPLIT.json in each run's folder.
        out: folder for report.md, report.html and the figures; none: print a short table.
        anyway: compare results that were scored under different protocols.
    """
    folders = {folder.name: folder for folder in (run, *(beside or []))}
    if len(folders) <= len(beside or []):
        raise ValueError("the folders of the runs must have different names")
    results = {name: read_result(default_json(at, split)) for name, at in folders.items()}
    require_comparable(results, anyway)
    if out is None:
        for name, folder in folders.items():
            print_table(folder, results[name])
        return
    metrics = {name: read_metrics(at / "metrics.jsonl") for name, at in folders.items()}
    sections = [scores(results), training(metrics), *sweeps(results)]
    for part in ("validation", "test", "train"):
        for kind, make in KINDS.items():
            found = {name: at / f"{kind}-{part}.json" for name, at in folders.items()}
            there = {name: read_result(path) for name, path in found.items() if path.is_file()}
            if there:
                require_comparable(there, anyway)
                sections += make(there, part)
    paths = {name: at / f"compress-{split}.json" for name, at in folders.items()}
    if packed := {name: read_json(path) for name, path in paths.items() if path.is_file()}:
        sections.append(compression(packed, split))
    write(out, f"{', '.join(folders)}: {split} text", sections)
    print(out / "report.html")


def print_table(run: Path, result: dict[str, Any]) -> None:
    """A run in a few lines, with the paths of its curve and samples."""
    rows = summary(result, read_metrics(run / "metrics.jsonl"))
    for path in (run / "curve.png", *sorted((run / "samples").glob("*"))):
        if path.exists():
            rows.append((path.stem, str(path)))
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))


def summary(result: dict[str, Any], metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Rows of a table: what was trained, how fast, and the score with its protocol."""
    last, speed = trained(metrics)
    protocol = result["protocol"]
    size = f"{result['model']['parameters']:,} parameters, {result['model']['layers']} layers"
    rate = f"{speed:,.0f} tokens/s, {last['mfu']:.0%} of the matmul rate"
    rows = [
        ("model", f"{size} of width {result['model']['width']}"),
        ("training", f"{last['step']:,} steps in {last['seconds'] / 60:.1f} minutes, {rate}"),
        (
            f"{protocol['corpus']} {protocol['split']}",
            f"{result['value']:.4f} {spoken(protocol['unit'])}",
        ),
    ]
    for name, value in result.get("compressors", {}).items():
        rows.append((f"  {name}", f"{value:.4f} bits per byte"))
    return [*rows, ("protocol", lengths(result))]


def trained(metrics: list[dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """The last record of a training, and its median speed in tokens per second."""
    training = [record for record in metrics if "loss" in record]
    speeds = sorted(record["tokens_per_second"] for record in training)
    return training[-1], speeds[len(speeds) // 2]


def scores(results: Results) -> Section:
    """All units of all runs, with interval and protocol."""
    units = [unit for result in results.values() for unit in result["units"]]
    units = list(dict.fromkeys(units))
    header = ("run", *map(spoken, units), "95 % interval", "parameters", "protocol")
    rows = []
    for name, result in results.items():
        bounds = " to ".join(f"{bound:.4g}" for bound in result["interval"]["bounds"])
        values = (f"{result['units'][u]:.4f}" if u in result["units"] else "" for u in units)
        parameters = f"{result['model']['parameters']:,}"
        rows.append((name, *values, bounds, parameters, lengths(result)))
    protocol = next(iter(results.values()))["protocol"]
    text = (
        f"{protocol['corpus']}, {protocol['split']} split. The interval is that of "
        f"{spoken(protocol['unit'])}, over documents drawn again."
    )
    compared = next(iter(results.values())).get("compressors", {})
    blank = ("",) * (len(header) - 2)
    if "bits_per_byte" in units:
        rows += [(name, f"{value:.4f}", *blank) for name, value in compared.items()]
    return Section("Scores", text, header, tuple(rows))


def training(metrics: dict[str, list[dict[str, Any]]]) -> Section:
    """Length and speed of each training, and its curve."""
    rows = []
    for name, records in metrics.items():
        last, speed = trained(records)
        rows.append((name, f"{last['step']:,}", f"{last['seconds'] / 60:.1f}", f"{speed:,.0f}"))
    header = ("run", "steps", "minutes", "tokens/s")
    figure = figures.svg(figures.training_curves(metrics))
    return Section("Training", "", header, tuple(rows), figure)


def sweeps(results: Results) -> list[Section]:
    """Lengths that were tried for a score."""
    sections = []
    for name, result in results.items():
        if swept := result.get("sweep"):
            header = ("segment", "memory", "compressed", spoken(swept["points"][0]["unit"]))
            rows = [
                (
                    *(str(point[length]) for length in header[:3]),
                    f"{point['value']:.4f}" + (" (chosen)" if n == swept["best"] else ""),
                )
                for n, point in enumerate(swept["points"])
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
        buckets = next(iter(found.values()))["frequency"]
        header = ("run", *(bucket["name"] for bucket in buckets))
        rows = [
            (name, *(f"{bucket['perplexity']:,.1f}" for bucket in result["frequency"]))
            for name, result in found.items()
        ]
        text = "Perplexity a word, by its occurrences in the training text."
        figure = figures.svg(figures.frequency(found))
        title = f"Words by frequency ({split})"
        sections.append(Section(title, text, header, tuple(rows), figure))
    if found := having("position"):
        sections.append(
            Section(f"Place in the document ({split})", figure=figures.svg(figures.position(found)))
        )
    for name, result in having("attention").items():
        figure = figures.svg(figures.attention(result, name))
        sections.append(Section(f"Attention of {name} ({split})", figure=figure))
    if found := having("reconstruction"):
        figure = figures.svg(figures.reconstruction(found))
        sections.append(Section(f"Reconstruction by layer ({split})", figure=figure))
    if found := having("ablation"):
        kinds = list(next(iter(found.values()))["ablation"])
        rows = [
            (name, *(f"{result['ablation'][kind]:.4f}" for kind in kinds))
            for name, result in found.items()
        ]
        figure = figures.svg(figures.ablation(found)) if "intact" in kinds else ""
        text = (
            "Bits per byte while the model reads another compressed memory than its own; the last "
            "column is the share of segments whose exchanged memory was of another document."
        )
        title = f"Compressed memory changed ({split})"
        header = ("run", *(kind.replace("_", " ") for kind in kinds))
        sections.append(Section(title, text, header, tuple(rows), figure))
    return sections


def dynamics(results: Results, split: str) -> list[Section]:
    """Dynamic evaluation beside fixed weights, a section a run."""
    sections = []
    for name, result in results.items():
        found = result["dynamic"]
        rows = [
            (
                "fixed weights" if p["lr"] is None else f"learning rate {p['lr']:g}",
                f"{p['value']:.4f}",
            )
            for p in found["passes"]
        ]
        text = f"{found['optimizer']}, a step every {found['every']} segments, each pass from the "
        text += f"trained weights, decay {found['decay']:g} towards them."
        title, header = (
            f"Dynamic evaluation of {name} ({split})",
            ("weights", spoken(found["unit"])),
        )
        figure = figures.svg(figures.dynamic(result, name))
        sections.append(Section(title, text, header, tuple(rows), figure))
    return sections


def distances(results: Results, split: str) -> list[Section]:
    """Recall by distance."""
    some = next(iter(results.values()))["distance"]
    header = ("run", *(f"{b['from']} to {b['to'] - 1}" for b in some["buckets"]))
    rows = [
        (name, *(f"{b['accuracy']:.1%}" for b in result["distance"]["buckets"]))
        for name, result in results.items()
    ]
    figure = figures.svg(figures.distance(results))
    text = "Share of the answers' bytes that are right, by distance in bytes."
    return [Section(f"Recall ({split})", text, header, tuple(rows), figure)]


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


KINDS: dict[str, Callable[[Results, str], list[Section]]] = {
    "breakdown": breakdowns,
    "dynamic": dynamics,
    "distance": distances,
}
"""What makes the sections of each kind of result file."""


def write(out: Path, title: str, sections: list[Section]) -> None:
    """Write the report and its figures."""
    out.mkdir(parents=True, exist_ok=True)
    files = {"report.md": markdown(title, sections), "report.html": html(title, sections)}
    files |= {section.file: section.figure for section in sections if section.figure}
    for name, text in files.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    command.run(main)
