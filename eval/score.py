"""Program: bits per byte of a split, with the protocol of the number."""

from dataclasses import dataclass
from pathlib import Path

from data import command
from data.files import write_json
from data.shards import open_shards
from eval.protocol import compressors, record, table
from lm.loading import Lengths, load_run
from lm.scoring import ScoringConfig, score


@dataclass(frozen=True)
class ScoreConfig(ScoringConfig, Lengths):
    """How a split is read when it is scored; lengths default to those of training."""


def main(
    run: Path,
    scoring: ScoreConfig,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
    compare: bool = True,
) -> None:
    """Score a split with a trained model: every token once, with the protocol of the number.

    Args:
        run: folder of the run.
        scoring: lengths, lanes and warm-up.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the whole record.
        compare: also compress the split's bytes with xz and bzip2.
    """
    loaded = load_run(run, checkpoint, scoring)
    opened = open_shards(shards or loaded.config.data.shards)
    if opened.vocabulary.hash != loaded.vocabulary.hash:
        raise ValueError(
            f"{opened.path} has another vocabulary ({opened.vocabulary.name}) than the model "
            f"({loaded.vocabulary.name}); prepare the text with the model's"
        )
    part = opened.split(split)
    result = record(
        loaded, opened, split, scoring, score(loaded.model, part, scoring, progress=True)
    )
    if compare:
        result["compressors"] = compressors(part)
    if json is not None:
        write_json(json, result)
    print(table(result))


if __name__ == "__main__":
    command.run(main, section="scoring")
