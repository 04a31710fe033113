"""Program: scores of a trained model when its smallest weights are set to zero."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common import command
from data.common.files import write_json
from eval.protocol import record, spoken
from eval.score import ScoreConfig, scored, text_for, this_rank
from lm.loading import load_run
from lm.sparse.config import Kind
from lm.sparse.prune import Scope, prune

LOGARITHMIC = "bits_per_byte"


@dataclass(frozen=True)
class PruneConfig(ScoreConfig):
    """What is pruned, and how a split is read when it is scored."""

    sparsities: tuple[float, ...] = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95)
    """Shares of the weights that are zero."""
    kinds: tuple[Kind, ...] = ("attention", "feedforward")
    """Matrices that are pruned."""
    scope: Scope = "matrix"
    """Whether the smallest weights of each matrix go, or the smallest of all together."""


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
    points: list[dict[str, Any]] = []
    for sparsity in pruning.sparsities:
        loaded = load_run(run, checkpoint, pruning)
        zero = prune(loaded.model, sparsity, pruning.kinds, pruning.scope)
        opened = text_for(loaded, shards)
        result = scored(loaded, opened, split, pruning, this_rank()).result()
        whole = record(loaded, opened, split, pruning, result)
        # The logarithm of a perplexity, because that of a heavily pruned model is astronomical.
        unit = LOGARITHMIC if LOGARITHMIC in whole["units"] else whole["protocol"]["unit"]
        points.append({"sparsity": sparsity, "zero": zero, "value": whole["units"][unit]})
        print(f"{sparsity:7.1%} zero  {whole['units'][unit]:.4f} {spoken(unit)}", flush=True)
    chosen = {"kinds": list(pruning.kinds), "scope": pruning.scope, "unit": unit}
    kept = {name: whole[name] for name in ("protocol", "model", "checkpoint")}
    if json is not None:
        write_json(json, {"pruning": points, "alpha": loaded.config.power.alpha, **chosen, **kept})


if __name__ == "__main__":
    command.run(main, section="pruning")
