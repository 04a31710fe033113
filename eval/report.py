"""Program: what came out of a run in a short table, or of several in a page with figures."""

from pathlib import Path

from data.common import command
from data.common.outputs import check_folder
from eval.results import (
    Compressed,
    read_result,
)


def main(
    run: Path,
    beside: list[Path] | None = None,
    split: str = "test",
    out: Path | None = None,
    anyway: bool = False,
) -> None:
    """Show size, training and score of a run, or join several runs into a report with figures.

    A run's folder holds what the report shows: score-SPLIT.json of eval.score, and as far as they
    are there breakdown-*.json, dynamic-*.json, adapt-*.json, distance-*.json and bayes-*.json of
    the programs of these names.

    Args:
        run: folder of the run.
        beside: folders of other runs, as '[runs/a, runs/b]'.
        split: the split whose result was written to score-SPLIT.json in each run's folder.
        out: folder for report.md, report.html and the figures; none: print a short table.
        anyway: compare results that were scored under different protocols.
    """
    from data.common.say import plain
    from eval.provenance import command as made_by
    from eval.provenance import configurations, samples
    from eval.tables import (
        KINDS,
        compression,
        print_table,
        read_there,
        require_comparable,
        require_same_weights,
        scores,
        sweeps,
        training,
        training_of,
        write,
    )
    from lm.inference.loading import parts_of

    runs = [run, *(beside or [])]
    folders = {plain(folder.resolve().name): folder for folder in runs}
    if len(folders) < len(runs):
        raise ValueError("the folders of the runs must have different names")
    check_folder(out, *(part for folder in runs for part in parts_of(folder)))
    results = {name: read_result(at / f"score-{split}.json") for name, at in folders.items()}
    require_comparable(results, anyway)
    metrics = {name: training_of(at, results[name]) for name, at in folders.items()}
    if out is None:
        for name, folder in folders.items():
            print_table(folder, results[name], metrics[name])
        return
    sections = [scores(results), training(metrics), *sweeps(results)]
    for part in ("validation", "test", "train"):
        for name_of_kind, (kind, make) in KINDS.items():
            there = read_there(folders, f"{name_of_kind}-{part}.json", kind)
            if there:
                for name, result in there.items():
                    require_same_weights(name, results[name], result, anyway)
                require_comparable(there, anyway)
                sections += make(there, part)
    if packed := read_there(folders, f"compress-{split}.json", Compressed):
        for name, result in packed.items():
            require_same_weights(name, results[name], result, anyway)
        sections.append(compression(packed, split))
    sections += [*samples(folders), *configurations(folders)]
    sections.append(made_by(run, beside or [], split, out, anyway))
    write(out, f"{', '.join(folders)}: {split} text", sections)
    print(out / "report.html")


if __name__ == "__main__":
    command.run(main)
