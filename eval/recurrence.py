"""Program: does a memory that is found again by content know what an earlier document has told?

Reads a text of data.series, document by document, as somebody would who keeps the memory of each in
a library: a document that comes again begins with no memory, with that whose key is nearest to the
one of its opening, with that of the very document it comes back to, or with another's. Its question
is answered from each of them, so the table tells what recall of episodes is worth, and what finding
the wrong one costs.
"""

from pathlib import Path

from data.common import command
from data.common.outputs import check_output, write_result
from lm.library import LibraryConfig


def main(
    run: Path,
    reading: LibraryConfig,
    answers: Path,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
) -> None:
    """Show what answers are right after memories of earlier documents, by how long ago these were.

    Args:
        run: folder of a run that was trained on a text of data.series.
        reading: how the text is read, and how long the opening is that documents are found by.
        answers: the text's file of this split, such as series/test.jsonl.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the results, by default recurrence-SPLIT.json in the run's folder.
    """
    from data.shards import open_shards
    from eval.reach import read_answers
    from eval.recurring import read_recurrences, recur, table
    from lm.inference.episodes import usual_opening
    from lm.inference.loading import load_run, parts_of

    target = json or run / f"recurrence-{split}.json"
    check_output(target, *parts_of(run), shards, answers)
    loaded = load_run(run, checkpoint, reading, reading)
    part = open_shards(shards or loaded.shards).split(split)
    if part.vocabulary.hash != loaded.vocabulary.hash:
        raise ValueError(
            f"the split {split!r} has another vocabulary ({part.vocabulary.name}) than the model "
            f"({loaded.vocabulary.name}); prepare the text with the model's"
        )
    rows = read_answers(answers, part)
    recurs = read_recurrences(answers)
    opening = reading.opening or usual_opening(loaded.predictor)
    found = recur(loaded.predictor, part, rows, recurs, opening)
    write_result(target, {"recurrence": found, "opening": opening, "model": loaded.weights})
    print(table(found))


if __name__ == "__main__":
    command.run(main, section="reading")
