"""Program: draw the training curve of a run, or of several in one figure, or other results."""

from pathlib import Path

from data.common import command
from data.common.integrity import read_sealed
from data.common.outputs import check_output


def main(
    run: Path,
    beside: list[Path] | None = None,
    out: Path | None = None,
    labels: list[str] | None = None,
) -> None:
    """Draw loss on training text and scores on validation text against training steps, and of a
    run that has been scored what compressors make of the text.

    A JSON file in place of a run is drawn as what it holds: scores against sparsity, of eval.prune;
    memory or time, of tools.bench sparse; the scores of an experiment, its table.json.

    Args:
        run: folder of a run, or a JSON file.
        beside: others for the same figure, as '[runs/a, runs/b]'.
        out: a .png or .svg file; by default curve.png in the run's folder, or beside the JSON file.
        labels: what the figure calls them, in order; by default their paths.
    """
    from eval.figures import check_kind, save, training_curves
    from eval.logs import training_log
    from lm.inference.loading import pieces
    from tools.drawings import figure_of

    paths = [run, *(beside or [])]
    names = labels or [str(path) for path in paths]
    if len(set(names)) != len(paths) or len(names) != len(paths):
        raise ValueError(f"{len(paths)} results need as many different labels, not {names}")
    files = [path.suffix == ".json" for path in paths]
    if any(files) != all(files):
        raise ValueError("runs and JSON files are drawn apart: name only one kind")
    target = out or (run.with_suffix(".png") if files[0] else run / "curve.png")
    check_kind(target)
    if files[0]:
        check_output(target, *paths)
        again = "make it again"
        results = {n: read_sealed(path, again) for n, path in zip(names, paths, strict=True)}
        figure = figure_of(results)
    else:
        metrics = {name: training_log(path) for name, path in zip(names, paths, strict=True)}
        check_output(target, *(part for path in paths for part in pieces(path)))
        lines = {}
        if not beside and not labels:
            metrics = {"training": metrics[str(run)]}
            lines = compressors_of(run)
        figure = training_curves(metrics, lines)
    save(figure, target)
    print(target)


def compressors_of(run: Path) -> dict[str, float]:
    """What compressors make of the test split, if it has been scored."""
    from eval.results import read_result

    file = run / "score-test.json"
    if not file.is_file():
        return {}
    return {f"{n}, test": bits for n, bits in read_result(file).get("compressors", {}).items()}


if __name__ == "__main__":
    command.run(main)
