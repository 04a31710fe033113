"""Program: several models on one split beside each other: runs, and models of transformers."""

from pathlib import Path

from data.common import command
from data.common.outputs import check_folder


def main(
    scores: list[Path],
    names: list[str] | None = None,
    split: str = "test",
    out: Path | None = None,
    per_token: bool = False,
    anyway: bool = False,
) -> None:
    """Compare scores of several models on one split: costs with intervals over documents,
    differences from the first with their own, speed, memory of state and reach; cost by place in
    the document and by frequency of words.

    Args:
        scores: files of longrange score --json, or folders of runs that hold score-SPLIT.json, as
            '[runs/a, smol.json]'; differences are from the first.
        names: what the models are called, by default as their folders or files.
        split: the split whose score lies in the folders of runs.
        out: folder for report.md, report.html and the figures; none: print the table.
        per_token: show perplexities a token too, of models with one vocabulary.
        anyway: compare scores whose protocols differ in what they must have in common.
    """
    from data.common.say import plain
    from eval.comparison import by_frequency, by_place, readings, require_alike, table_of
    from eval.pages import in_lines
    from eval.results import read_result
    from eval.tables import write

    if not scores:
        raise ValueError("scores must name at least one file of longrange score, or a run")
    check_folder(out, *scores)
    called = names or [path.resolve().name.removesuffix(".json") for path in scores]
    if len(called) != len(scores):
        raise ValueError(f"names must be {len(scores)}, one for each of scores")
    if len(set(map(plain, called))) < len(called):
        raise ValueError("the models must have different names: give --names '[A, B, ...]'")
    files = [path / f"score-{split}.json" if path.is_dir() else path for path in scores]
    results = {plain(name): read_result(file) for name, file in zip(called, files, strict=True)}
    require_alike(results, anyway)
    sections = [table_of(results, per_token), readings(results)]
    sections += [*by_place(results), *by_frequency(results)]
    if out is None:
        print("\n\n".join(map(in_lines, sections)))
        return
    write(
        out,
        f"{', '.join(results)}: {next(iter(results.values()))['protocol']['split']} text",
        sections,
    )
    print(out / "report.html")


if __name__ == "__main__":
    command.run(main)
