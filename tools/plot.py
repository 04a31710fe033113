"""Program: draw the training curve of a run, or of several in one figure."""

from pathlib import Path

from data import command
from eval.figures import training_curves
from lm.training.runlog import read_metrics


def main(run: Path, beside: list[Path] | None = None, out: Path | None = None) -> None:
    """Draw loss on training text and scores on validation text against training steps.

    Args:
        run: folder of a run.
        beside: folders of other runs for the same figure, as '[runs/a, runs/b]'.
        out: a .png or .svg file; by default curve.png in the run's folder.
    """
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
