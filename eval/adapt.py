"""Program: ways to learn from a text while it is scored, beside each other.

What was read is looked up (neural cache, kNN-LM, Memory-based Parameter Adaptation), or weights
learn on (dynamic evaluation); docs/papers.md has the papers. Settings are chosen on the validation
split, and the best of each way is scored on another. Such numbers stand beside the plain one and
never in its place.
"""

from dataclasses import replace
from pathlib import Path

from data.common import command
from data.common.outputs import check_output, write_result
from eval.eval_config import AdaptConfig


def main(
    run: Path,
    scoring: AdaptConfig,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
    keep: Path | None = None,
) -> None:
    """Score a split with ways to learn from it on the way, each as it is best on validation.

    Args:
        run: folder of the run.
        scoring: how the text is read, the ways, and the settings to choose from.
        split: which split is reported.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the results, by default adapt-SPLIT.json in the run's folder.
        keep: folder for what each pass came to and the state of a long one, with which the same
            command goes on.
    """
    from eval.adaptations import compared, fixed, passes_of, table
    from eval.adapting import as_read
    from eval.lookups import Search
    from eval.protocol import open_reading, record
    from lm.inference.loading import parts_of

    if split == "validation":
        raise ValueError("settings are chosen on the validation split; report another with --split")
    target = json or run / f"adapt-{split}.json"
    check_output(target, *parts_of(run), shards)
    if scoring.warmup is None:
        # The same for all, so that entries are those of one long pass whatever the lanes.
        warmup = open_reading(run, scoring, split, shards, checkpoint).warmup
        scoring = replace(scoring, warmup=warmup + max(scoring.capacity))
    reading = open_reading(run, scoring, split, shards, checkpoint)
    passes = passes_of(reading, scoring, keep)
    plain, cost = fixed(reading, scoring, passes)
    result = record(reading, plain)
    scale = as_read(result, plain, scoring.limit)
    part = reading.shards.split("validation")
    search = Search(reading.loaded.predictor, part, scoring, passes)
    result["adapt"] = compared(reading, search, cost, scale)
    write_result(target, result)
    print(table(result))


if __name__ == "__main__":
    command.run(main, section="scoring")
