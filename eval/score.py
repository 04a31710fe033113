"""Program: what a split costs a trained model, with the protocol of the number."""

import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from data.common import command
from data.common.files import hash_file
from data.common.outputs import check_output, in_place, resolved, write_result, writing
from data.shards import Shards, open_shards
from eval.keeping import Keeper, read_to_end
from eval.protocol import compressors, protocol, record, table
from eval.records import Result
from eval.sweep import Point, SweepConfig, point, sweep
from eval.sweep import table as sweep_table
from lm.inference.predictor import ModelState
from lm.loading import Lengths, LoadedRun, load_run, parts_of
from lm.scoring import Scorer, ScoringConfig
from lm.training import dist
from lm.training.checkpoint import SETS


@dataclass(frozen=True)
class ScoreConfig(ScoringConfig, Lengths):
    """How a split is read when it is scored; lengths default to those of training."""


@dataclass(frozen=True)
class ProgramConfig(ScoreConfig):
    """How a split is read, at one choice of lengths or the best of several."""

    sweep: SweepConfig = field(default_factory=SweepConfig)


def main(
    run: Path,
    scoring: ProgramConfig,
    split: str = "test",
    shards: Path | None = None,
    checkpoint: str | None = None,
    json: Path | None = None,
    compare: bool = True,
    keep: Path | None = None,
) -> None:
    """Score a split with a trained model: every token once, with the protocol of the number.

    Several processes share the lanes: torchrun --nproc_per_node 2 -m -- eval.score ...

    Args:
        run: folder of the run.
        scoring: lengths, lanes, warm-up, and lengths to choose from on the validation split.
        split: which split.
        shards: the shards, if they are not where they were in training.
        checkpoint: name of the checkpoint, by default the newest.
        json: file for the whole record; a sweep is drawn in an .svg file beside it.
        compare: also compress the split's bytes with xz and bzip2.
        keep: folder for the state of a long score, with which the same command goes on.
    """
    reads = [*parts_of(run), shards]
    check_output(json, *reads)
    figure = figure_beside(json) if json is not None and scoring.sweep else None
    check_output(figure, *reads)
    world = this_rank()

    def scored_at(lengths: Lengths, name: str, keep: Path | None = None) -> Result:
        chosen = replace(scoring, **asdict(lengths))
        loaded = load_run(run, checkpoint, lengths)
        opened = text_for(loaded, shards)
        scorer = scored(loaded, opened, name, chosen, world, keep)
        result = record(loaded, opened, name, chosen, scorer.result(world.sum))
        if compare and name == split:
            result["compressors"] = compressors(opened.split(name))
        return result

    def validated(lengths: Lengths) -> Point:
        result = scored_at(lengths, "validation")
        return point(result["protocol"], result["value"], result["protocol"]["unit"])

    lengths, swept = Lengths(scoring.segment, scoring.memory, scoring.compressed), None
    if scoring.sweep:
        if keep is not None:
            raise ValueError("keep has no effect on a sweep; score the chosen lengths with it")
        lengths, swept = sweep(scoring.sweep.points(lengths), validated)
    result = scored_at(lengths, split, keep)
    if swept is not None:
        result["sweep"] = swept
    if world.first:
        write_result(json, result)
        if figure is not None and swept is not None:
            draw(swept, figure)
        print((sweep_table(swept) + "\n" if swept else "") + table(result))
    if world.size > 1:
        dist.leave(world)


def figure_beside(json: Path) -> Path | None:
    """Where the figure of a sweep goes; nowhere beside a device.

    Raises:
        ValueError: it would lie where the record goes.
    """
    if in_place(resolved(json)):
        return None
    if json.suffix == ".svg":
        raise ValueError(f"{json} would be replaced by the figure; end its name in .json")
    return json.with_suffix(".svg")


def draw(swept: dict[str, Any], path: Path) -> None:
    """Write the figure of a sweep."""
    # Imported here because matplotlib takes a second, and most scores draw nothing.
    from eval import figures

    with writing(path) as place:
        place.write_text(figures.svg(figures.sweep(swept)), encoding="utf-8")


def this_rank() -> dist.World:
    """This process among those of a launcher, or alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return dist.join()
    return dist.World(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def text_for(loaded: LoadedRun, shards: Path | None) -> Shards:
    """The shards that a run was trained on, or others with the same vocabulary.

    Raises:
        ValueError: they have another vocabulary.
    """
    opened = open_shards(shards or loaded.config.data.shards)
    if opened.vocabulary.hash != loaded.vocabulary.hash:
        raise ValueError(
            f"{opened.path} has another vocabulary ({opened.vocabulary.name}) than the model "
            f"({loaded.vocabulary.name}); prepare the text with the model's"
        )
    return opened


def identity(loaded: LoadedRun) -> dict[str, Any]:
    """All that decides what a model predicts, in plain values."""
    sets = loaded.checkpoint / SETS
    return {
        "weights": loaded.weights,
        "sets": hash_file(sets) if sets.is_file() else None,
        "model": asdict(loaded.model.config),
        "sparse": asdict(loaded.config.sparse) | {"reservoir": None},
        "power": asdict(loaded.config.power),
        "vocabulary": loaded.vocabulary.hash,
    }


def scored(
    loaded: LoadedRun,
    shards: Shards,
    split: str,
    config: ScoringConfig,
    world: dist.World,
    keep: Path | None = None,
) -> Scorer[ModelState]:
    """A scorer that has read this rank's lanes to the end.

    Raises:
        ValueError: the lanes do not divide among the ranks, or `keep` holds another score.
    """
    if config.lanes % world.size:
        raise ValueError(
            f"lanes must be a multiple of the {world.size} processes, not {config.lanes}"
        )
    share = config.lanes // world.size
    rows = slice(world.rank * share, (world.rank + 1) * share)
    scorer = Scorer(loaded.predictor, shards.split(split), config, rows=rows)
    keeper = None
    if keep is not None:
        what = protocol(loaded, shards, split, config)
        keeper = Keeper(keep, what | identity(loaded) | {"ranks": world.size}, world.rank)
    read_to_end(scorer, keeper, world.first)
    return scorer


if __name__ == "__main__":
    command.run(main, section="scoring")
