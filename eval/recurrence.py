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
from eval.eval_config import ScoreConfig
from lm.library import LibraryConfig


def main(
    run: Path,
    how: LibraryConfig,
    answers: Path,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
) -> None:
    """Show what answers are right after memories of earlier documents, by how long ago these were.

    Args:
        run: folder of a run that was trained on a text of data.series.
        how: how the text is read, and how long the opening is that documents are found by.
        answers: the text's file of this split, such as series/test.jsonl.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the results, by default recurrence-SPLIT.json in the run's folder.
    """
    from eval.protocol import open_reading, protocol
    from eval.reach import read_answers
    from eval.recurring import read_recurrences, recur, require_memories, table
    from lm.inference.episodes import usual_opening
    from lm.inference.loading import parts_of

    target = json or run / f"recurrence-{split}.json"
    check_output(target, *parts_of(run), shards, answers)
    options = {name: value for name, value in vars(how).items() if name != "opening"}
    config = ScoreConfig(**options, lanes=1, warmup=0, reset_documents=True)
    reading = open_reading(run, config, split, shards, checkpoint)
    predictor = reading.loaded.predictor
    require_memories(predictor.model.config)
    rows, recurs = read_answers(answers, reading.split), read_recurrences(answers)
    opening = how.opening or usual_opening(predictor)
    found = recur(predictor, reading.split, rows, recurs, opening)
    result = {"protocol": protocol(reading) | {"opening": opening}, "recurrence": found}
    write_result(target, result | {"checkpoint": reading.loaded.weights})
    print(table(found))


if __name__ == "__main__":
    command.run(main, section="how")
