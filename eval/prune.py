"""Program: scores of a trained model when its smallest weights are set to zero."""

from pathlib import Path
from typing import Any

from data.common import command
from data.common.outputs import check_output, write_result
from eval.eval_config import PruneConfig
from eval.results import spoken

LOGARITHMIC = "bits_per_byte"


def main(
    run: Path,
    pruning: PruneConfig,
    split: str = "validation",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
) -> None:
    """Score a split at several sparsities of one-shot magnitude pruning, without training after it.

    Args:
        run: folder of the run.
        pruning: sparsities, and how the split is read.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the result, of which tools.plot draws a curve.
    """
    from eval.protocol import open_reading, record
    from eval.scored import scored
    from eval.sweeps import this_rank
    from lm.inference.loading import parts_of
    from lm.sparse.pruning import prune
    from lm.training import dist

    check_output(json, *parts_of(run), shards)
    points: list[dict[str, Any]] = []
    world = this_rank()
    for sparsity in pruning.sparsities:
        reading = open_reading(run, pruning, split, shards, checkpoint)
        zero = prune(reading.loaded.model, sparsity, pruning.kinds, pruning.scope)
        whole = record(reading, scored(reading, world).result(world.sum))
        # The logarithm of a perplexity, because that of a heavily pruned model is astronomical.
        unit, value = whole["protocol"]["unit"], whole["value"]
        if LOGARITHMIC in whole["units"]:
            unit, value = LOGARITHMIC, whole["units"][LOGARITHMIC]
        points.append({"sparsity": sparsity, "zero": zero, "value": value})
        if world.first:
            print(f"{sparsity:7.1%} zero  {value:.4f} {spoken(unit)}", flush=True)
    chosen = {"kinds": list(pruning.kinds), "scope": pruning.scope, "unit": unit}
    kept = {name: whole[name] for name in ("protocol", "model", "checkpoint")}
    result_file = {"pruning": points, "alpha": reading.loaded.config.power.alpha, **chosen, **kept}
    if world.first:
        write_result(json, result_file)
    if world.size > 1:
        dist.leave(world)


if __name__ == "__main__":
    command.run(main, section="pruning")
