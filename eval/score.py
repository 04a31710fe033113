"""Program: what a split costs a trained model, with the protocol of the number."""

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from data.common import command
from data.common.files import hash_file
from data.common.outputs import check_output, in_place, resolved, write_result, writing
from data.common.schema import Count, Size
from data.shards import Shards, open_shards
from eval.keeping import Keeper, read_to_end
from eval.protocol import compressors, protocol, record, table
from eval.results import Result
from lm.inference.loading import Lengths, LoadedRun, load_run, parts_of
from lm.inference.predictor import ModelState
from lm.runs.checkpoints import SETS
from lm.scoring import Scorer, ScoringConfig
from lm.training import dist

Point = dict[str, Any]
NAMES = ("segment", "memory", "compressed")


@dataclass(frozen=True)
class SweepConfig:
    """Lengths to be tried on the validation split, in all combinations; the best is then scored."""

    segment: tuple[Size, ...] = ()
    """Tokens read at once."""
    memory: tuple[Count, ...] = ()
    """Slots of memory in each layer."""
    compressed: tuple[Count, ...] = ()
    """Slots of compressed memory in each layer."""

    def __bool__(self) -> bool:
        return bool(self.segment or self.memory or self.compressed)

    def points(self, fixed: Lengths) -> list[Lengths]:
        """Every combination; what no list names is as in `fixed`.

        Raises:
            ValueError: a length is given both ways.
        """
        for name in NAMES:
            if getattr(self, name) and getattr(fixed, name) is not None:
                raise ValueError(f"give either --{name} or --sweep.{name}")
        choices = [getattr(self, name) or (getattr(fixed, name),) for name in NAMES]
        return [Lengths(*lengths) for lengths in product(*choices)]


def sweep(
    points: list[Lengths], score: Callable[[Lengths], Point]
) -> tuple[Lengths, dict[str, Any]]:
    """The best of some lengths, and what all of them give.

    Args:
        points: lengths to try.
        score: scores the validation split; returns lengths, `value` (less is better) and `unit`.
    """
    found = [score(point) for point in points]
    best = min(range(len(found)), key=lambda index: found[index]["value"])
    return points[best], {"split": "validation", "points": found, "best": best}


def sweep_table(swept: dict[str, Any]) -> str:
    """The points in lines, the chosen one marked."""
    unit = swept["points"][0]["unit"].replace("_", " ")
    lines = [f"{'segment':>9}{'memory':>9}{'compressed':>12}  {unit}, {swept['split']}"]
    for number, point in enumerate(swept["points"]):
        lengths = f"{point['segment']:>9}{point['memory']:>9}{point['compressed']:>12}"
        mark = "  <- chosen" if number == swept["best"] else ""
        lines.append(f"{lengths}{point['value']:10.4f}{mark}")
    return "\n".join(lines)


def point(lengths: dict[str, Any], value: float, unit: str) -> Point:
    """One point of a sweep; `lengths` has segment, memory and compressed, as a protocol has."""
    return {name: lengths[name] for name in NAMES} | {"value": value, "unit": unit}


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
