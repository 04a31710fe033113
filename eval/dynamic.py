"""Program: dynamic evaluation: a model that goes on learning from the text it has been scored on.

Krause et al., arXiv 1709.07432; the Compressive Transformer's section 4.3 reports one pass of it.
Such a number stands beside that of fixed weights and never in its place. On the training split the
program shows the paper's finding (section 5.5.1) that weights which keep moving remember the text
they have just moved through: with the learning rate at zero the training loss jumps up.
"""

from dataclasses import replace
from pathlib import Path

from data.common import command
from data.common.outputs import check_output, write_result
from eval.eval_config import DynamicConfig


def main(
    run: Path,
    scoring: DynamicConfig,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
) -> None:
    """Score a split with fixed weights, and with weights that learn from what was scored.

    Args:
        run: folder of the run.
        scoring: how the text is read, and how weights move.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the results, by default dynamic-SPLIT.json in the run's folder.
    """
    from eval.adapting import DynamicScorer, as_read, one_pass, table
    from eval.protocol import convert, open_reading, record
    from lm.inference.loading import parts_of
    from lm.scoring import Scorer

    target = json or run / f"dynamic-{split}.json"
    check_output(target, *parts_of(run), shards)
    reading = open_reading(run, scoring, split, shards, checkpoint)
    model, part = reading.loaded.model, reading.split
    plain = Scorer(reading.loaded.predictor, part, scoring)
    fixed = one_pass(plain, scoring.limit, "fixed weights")
    result = record(reading, plain.result())
    unit, denominator = as_read(result, plain.result(), scoring.limit)
    passes = [fixed | {"lr": None, "value": convert(fixed["nats"], unit, denominator)}]
    for lr in scoring.lrs:
        moving = DynamicScorer(model, part, replace(scoring, lrs=(lr,)))
        why = f"learning rate {lr:g} carried its weights away; leave it out of --lrs"
        found = one_pass(moving, scoring.limit, f"learning rate {lr:g}", why)
        passes.append(found | {"lr": lr, "value": convert(found["nats"], unit, denominator)})
    how = {
        name: getattr(scoring, name) for name in ("optimizer", "every", "decay", "clip", "learn")
    }
    result["dynamic"] = how | {"unit": unit, "passes": passes}
    write_result(target, result)
    print(table(result))


if __name__ == "__main__":
    command.run(main, section="scoring")
