"""Program: how far back a model remembers: accuracy of answers by the distance to what they need.

Reads a text of data.recall. A token counts as known where the model gives it the highest
probability; guessing a letter is right once in 26 times, a cue once in four, a guest (names) or a
town of the document once in eight (key_value), and one of a chain once in two.
"""

from pathlib import Path

from data.common import command
from data.common.outputs import check_output, write_result
from eval.eval_config import ScoreConfig


def main(
    run: Path,
    scoring: ScoreConfig,
    answers: Path,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
) -> None:
    """Show the accuracy of a model's answers against their distance.

    Args:
        run: folder of a run that was trained on a text of data.recall.
        scoring: how the text is read; each document begins with empty memory.
        answers: the text's file of this split, such as recall/test.jsonl.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the results, by default distance-SPLIT.json in the run's folder.
    """
    from eval.keeping import read_to_end
    from eval.protocol import open_reading, record
    from eval.reach import (
        RecallScorer,
        buckets,
        reach,
        read_answers,
        require_distances,
        table,
    )
    from lm.inference.loading import parts_of

    target = json or run / f"distance-{split}.json"
    check_output(target, *parts_of(run), shards, answers)
    if not scoring.reset_documents:
        raise ValueError("give --reset-documents: what is asked about stands in the same document")
    reading = open_reading(run, scoring, split, shards, checkpoint)
    rows = read_answers(answers, reading.split)
    require_distances(answers, rows)
    scorer = RecallScorer(reading.loaded.predictor, reading.split, scoring)
    read_to_end(scorer)
    result = record(reading, scorer.result())
    result["distance"] = {
        "reach": reach(reading.loaded.model.config),
        "buckets": buckets(scorer.known_N, rows),
    }
    write_result(target, result)
    print(table(result["distance"]))


if __name__ == "__main__":
    command.run(main, section="scoring")
