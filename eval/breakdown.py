"""Program: where a score comes from: words, places, documents, attention, and memory's worth."""

from pathlib import Path

import numpy as np

from data.common import command
from data.common.files import as_json
from data.common.integrity import sealed
from data.common.outputs import check_folder, check_output, writing
from eval.eval_config import BreakdownConfig


def main(
    run: Path,
    scoring: BreakdownConfig,
    split: str = "validation",
    shards: Path | None = None,
    checkpoint: str | None = None,
    out: Path | None = None,
) -> None:
    """Score a split and break the number down: by the frequency of words in training, by place in
    the document, by document, by attention to memory of each age, with memory changed, and what
    memory tells of each token.

    Args:
        run: folder of the run.
        scoring: how the split is read and cut.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        out: folder for breakdown-SPLIT.json, documents-SPLIT.csv and worth-SPLIT.html, by default
            the run's.
    """
    from eval.in_context import context_lines, in_context
    from eval.keeping import read_to_end
    from eval.parts import (
        WatchingScorer,
        ablation,
        attention,
        by_position,
        frequency,
        names,
        table,
        write_documents,
    )
    from eval.protocol import open_reading, record
    from eval.worth import worth_lines, worth_record, worth_scorer, write_page
    from lm.inference.attention_mass import AttentionMass
    from lm.inference.loading import parts_of

    folder = out or run
    check_folder(folder, *parts_of(run), shards)
    for name in names(split):
        if folder.is_dir():
            check_output(folder / name)
    reading = open_reading(run, scoring, split, shards, checkpoint)
    loaded, part = reading.loaded, reading.split
    worth, model = None, loaded.model.config
    if scoring.worth and (model.slots or scoring.local):
        worth = worth_scorer(reading, scoring.local)
    token_nats = np.full(len(part.tokens), np.nan, dtype=np.float32)
    scorer = WatchingScorer(loaded.predictor, part, scoring, token_nats=token_nats)
    with AttentionMass(loaded.model) as scorer.mass:
        read_to_end(scorer)
    result = record(reading, scorer.result())
    result |= {
        "frequency": frequency(reading, token_nats, scoring.edges),
        "position": by_position(part, token_nats, loaded.model.config.segment),
        "context": in_context(part, token_nats, loaded.model.config.segment),
        "attention": attention(scorer.mass),
        "reconstruction": scorer.by_layer("reconstruction"),
        "reconstruction_relative": scorer.by_layer("reconstruction_relative"),
        "ablation": ablation(reading, scoring.ablations),
    }
    lines = [table(result), *context_lines(result["context"])]
    if worth is not None:
        read_to_end(worth)
        result["worth"] = worth_record(worth, reading, scoring.edges)
        lines += worth_lines(result["worth"])
    folder.mkdir(parents=True, exist_ok=True)
    record_name, documents_name, page_name = names(split)
    if worth is not None and part.vocabulary.kind != "mulaw":
        write_page(folder / page_name, worth, f"{run.name}, {split}")
    # The list of documents first: whoever finds the record finds both.
    with writing(folder / record_name) as place, writing(folder / documents_name) as documents:
        place.write_text(as_json(sealed(result)), encoding="utf-8")
        write_documents(documents, part, scorer.document_nats)
    print("\n".join(lines))


if __name__ == "__main__":
    command.run(main, section="scoring")
