"""Program: draw the training curve of a run, or of several in one figure, or other results."""

from pathlib import Path

from data import command
from data.files import read_json
from eval.figures import training_curves
from eval.sparse_figures import figure_of
from lm.training.runlog import read_metrics


def main(run: Path, beside: list[Path] | None = None, out: Path | None = None) -> None:
    """Draw loss on training text and scores on validation text against training steps.

    A JSON file in place of a run is drawn as what it holds: scores against sparsity, of eval.prune;
    memory or time, of tools.bench sparse; the scores of an experiment, its table.json.

    Args:
        run: folder of a run, or a JSON file.
        beside: others for the same figure, as '[runs/a, runs/b]'.
        out: a .png or .svg file; by default curve.png in the run's folder, or beside the JSON file.
    """
    if run.suffix == ".json":
        files = [run, *(beside or [])]
        target = out or run.with_suffix(".png")
        figure_of({str(file): read_json(file) for file in files}).savefig(target, dpi=120)
        print(target)
        return
    metrics = {str(folder): training_records(folder) for folder in (run, *(beside or []))}
    if not beside:
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
