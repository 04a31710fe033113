"""Program: what a split costs a trained model, with the protocol of the number."""

import bz2
import lzma
import os
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from data.common import command
from data.common.files import hash_file
from data.common.outputs import check_output, in_place, resolved, write_result, writing
from data.common.schema import Count, Size
from data.shards import Split
from eval.keeping import Keeper, read_to_end
from eval.pages import plain
from eval.protocol import LEVEL, Reading, ScoreConfig, open_reading, protocol, record
from eval.results import Result, lengths, spoken
from lm.inference.loading import Lengths, LoadedRun, parts_of
from lm.inference.predictor import ModelState
from lm.runs.checkpoints import SETS
from lm.scoring import Scorer
from lm.training import dist

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
        reading = open_reading(run, replace(scoring, **asdict(lengths)), name, shards, checkpoint)
        result = record(reading, scored(reading, world, keep).result(world.sum))
        if compare and name == split:
            result["compressors"] = compressors(reading.split)
        return result

    lengths, swept = Lengths(scoring.segment, scoring.memory, scoring.compressed), None
    if scoring.sweep:
        if keep is not None:
            raise ValueError("keep has no effect on a sweep; score the chosen lengths with it")
        tried = scoring.sweep.points(lengths)
        points = [point(scored_at(each, "validation")) for each in tried]
        best = min(range(len(points)), key=lambda index: points[index]["value"])
        lengths, swept = tried[best], {"split": "validation", "points": points, "best": best}
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


def point(result: Result) -> dict[str, Any]:
    """What a sweep keeps of a score at one choice of lengths; less is better."""
    kept = {name: result["protocol"][name] for name in (*NAMES, "unit")}
    return {"value": result["value"]} | kept


def sweep_table(swept: dict[str, Any]) -> str:
    """The points in lines, the chosen one marked."""
    unit = spoken(swept["points"][0]["unit"])
    lines = [f"{'segment':>9}{'memory':>9}{'compressed':>12}  {unit}, {swept['split']}"]
    for number, point in enumerate(swept["points"]):
        lengths = f"{point['segment']:>9}{point['memory']:>9}{point['compressed']:>12}"
        mark = "  <- chosen" if number == swept["best"] else ""
        lines.append(f"{lengths}{point['value']:10.4f}{mark}")
    return "\n".join(lines)


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


def identity(loaded: LoadedRun) -> dict[str, Any]:
    """All that decides what a model predicts, in plain values."""
    sets = loaded.checkpoint / SETS
    return {
        "weights": loaded.weights,
        "sets": hash_file(sets) if sets.is_file() else None,
        "model": loaded.model.config.shape(),
        "sparse": asdict(loaded.config.sparse) | {"reservoir": None},
        "power": asdict(loaded.config.power),
        "vocabulary": loaded.vocabulary.hash,
    }


def scored(reading: Reading, world: dist.World, keep: Path | None = None) -> Scorer[ModelState]:
    """A scorer that has read this rank's lanes to the end.

    Raises:
        ValueError: the lanes do not divide among the ranks, or `keep` holds another score.
    """
    loaded, config = reading.loaded, reading.config
    if config.lanes % world.size:
        raise ValueError(
            f"lanes must be a multiple of the {world.size} processes, not {config.lanes}"
        )
    share = config.lanes // world.size
    rows = slice(world.rank * share, (world.rank + 1) * share)
    scorer = Scorer(loaded.predictor, reading.split, config, rows=rows)
    keeper = None
    if keep is not None:
        what = protocol(reading) | identity(loaded) | {"ranks": world.size}
        keeper = Keeper(keep, what, world.rank)
    read_to_end(scorer, keeper, world.first)
    return scorer


def compressors(split: Split) -> dict[str, float]:
    """Bits per byte that general compressors reach on the split's bytes, on their own; none where
    the tokens do not give these back.
    """
    if not split.exact:
        return {}
    text = split.vocabulary.decode(split.tokens)
    sizes = {"xz -9": len(lzma.compress(text, preset=9)), "bzip2 -9": len(bz2.compress(text, 9))}
    return {name: 8 * size / len(text) for name, size in sizes.items()}


def table(result: Result) -> str:
    """A result in a few lines, protocol included."""
    protocol, bounds = result["protocol"], result["interval"]["bounds"]
    lines = [f"{plain(protocol['corpus'])} {protocol['split']}: {result['value']:.4f}"]
    lines[0] += f" {spoken(protocol['unit'])}"
    if bounds:
        lines[0] += f" ({LEVEL:.0%} of resampled documents: {bounds[0]:.4f} to {bounds[1]:.4f})"
    rows = [(spoken(name), value) for name, value in result["units"].items()]
    rows += [
        (f"{name}, bits per byte", value) for name, value in result.get("compressors", {}).items()
    ]
    # The word perplexity of a text with few words may have hundreds of digits.
    lines += [f"  {name:<24}{value:10{'.4f' if value < 1e6 else '.4g'}}" for name, value in rows]
    official = "the published count" if result["official_words"] else "its own count"
    lines.append(
        f"  {protocol['tokens']:,} tokens scored; {result['bytes']:,} bytes; "
        f"{result['words']:,} words ({official})"
    )
    if result["unknown_words"] is not None:
        lines[-1] += f"; {result['unknown_words']:.2%} of words unknown"
    if not result["exact"]:
        lines.append("  no bits per byte or character: the tokens do not give the text back")
    lines.append(f"  {lengths(result)}")
    lines.append(
        f"  {result['model']['parameters']:,} parameters, {result['checkpoint']['name']} "
        f"({result['checkpoint']['sha256'][:12]}), shards {protocol['shards'][:12]}, "
        f"commit {(result['commit'] or 'unknown')[:12]}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    command.run(main, section="scoring")
