"""Program: draw the training curve of a run, or of several in one figure, or other results."""

from pathlib import Path

from data.common import command
from data.common.files import read_json
from eval.figures import training_curves
from eval.sparse_figures import figure_of
from lm.training.runlog import read_metrics


def main(
    run: Path,
    beside: list[Path] | None = None,
    out: Path | None = None,
    labels: list[str] | None = None,
) -> None:
    """Draw loss on training text and scores on validation text against training steps.

    A JSON file in place of a run is drawn as what it holds: scores against sparsity, of eval.prune;
    memory or time, of tools.bench sparse; the scores of an experiment, its table.json.

    Args:
        run: folder of a run, or a JSON file.
        beside: others for the same figure, as '[runs/a, runs/b]'.
        out: a .png or .svg file; by default curve.png in the run's folder, or beside the JSON file.
        labels: what the figure calls them, in order; by default their paths.
    """
    paths = [run, *(beside or [])]
    names = labels or [str(path) for path in paths]
    if labels and len(set(labels)) != len(paths):
        raise ValueError(f"{len(paths)} results need as many different labels, not {labels}")
    if run.suffix == ".json":
        results = {name: read_json(path) for name, path in zip(names, paths, strict=True)}
        target = out or run.with_suffix(".png")
        figure_of(results).savefig(target, dpi=120)
        print(target)
        return
    metrics = {name: training_records(path) for name, path in zip(names, paths, strict=True)}
    if not beside and not labels:
        metrics = {"training": metrics[str(run)]}
    target = out or run / "curve.png"
    training_curves(metrics).savefig(target, dpi=120)
    print(target)


def training_records(run: Path) -> list[dict[str, float]]:
    """What a run has logged.

    Raises:
        ValueError: nothing yet.
    """
    log = run / "metrics.jsonl"
    if not log.is_file():
        raise ValueError(f"{run} holds no metrics.jsonl; train it first")
    records = read_metrics(log)
    if not any("loss" in record for record in records):
        raise ValueError(f"{log} has no losses yet")
    return records


if __name__ == "__main__":
    command.run(main)
