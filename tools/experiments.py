"""Program: train variants of one preset with several seeds, and compare their scores in a table.

An experiment file is a preset (sections data, model, optim, training) with more keys:

    variants: name -> dotted overrides, such as {model.compression: mean}; and `from`, the folder
              of a run whose weights to begin with (lm.train --from), {seed} in it being the seed
    seeds:    values of training.seed, [0, 1, 2] if left out
    paper:    name -> what the literature reports, shown beside (optional)

Runs lie in OUT/VARIANT/seed-N. What is finished is skipped, what was stopped goes on, so the same
command continues an experiment that was killed. Results that other programs write as
OUT/VARIANT/seed-N/result.json join the table.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from pydantic import ConfigDict, Field

from data.common import command
from data.common.command import ConfigError, dump_config, find_preset, load_config
from data.common.files import as_json
from data.common.integrity import write_sealed
from data.common.outputs import writing_folder
from data.common.say import say
from data.common.schema import Count, Record, Size, as_record, read_record
from data.common.signals import handling
from data.common.yamlfile import read_yaml
from eval.results import bits_named, bits_of, unit_of
from eval.score_record import Cost
from lm import train
from lm.inference.inference_config import BITS
from lm.runs.run_config import RunConfig, RunFolder

RESULT = "result.json"
LONGEST_NAME = 200
"""In bytes; file systems take 255."""


class Compared(Record):
    """What makes an experiment file of a preset."""

    variants: dict[str, dict[str, Any] | None]
    seeds: list[Count] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    paper: dict[str, float] = Field(default_factory=dict)


class Result(Cost):
    """A run's result.json, by this program or another, which may say more."""

    model_config = ConfigDict(extra="ignore")

    parameters: Count
    steps: Count
    tokens_per_second: float
    config: str | None = None


@dataclass(frozen=True)
class Planned:
    """A run of an experiment."""

    start: RunFolder
    config: RunConfig


def is_folder_name(name: str) -> bool:
    """Whether a folder of this name lies where it is made, and shows on every terminal."""
    short = 0 < len(name.encode(errors="replace")) <= LONGEST_NAME
    return short and name.isprintable() and Path(name).name == name and name[0] not in ".~"


@dataclass(frozen=True)
class Experiment:
    """What an experiment file holds."""

    preset: dict[str, Any]
    """Sections of a run's config."""
    variants: dict[str, dict[str, Any] | None]
    """Dotted overrides by name."""
    seeds: list[int]
    paper: dict[str, float]

    @staticmethod
    def read(path: Path) -> "Experiment":
        """Read a file.

        Raises:
            ValueError: no variants, or a name that cannot be a folder's.
        """
        content = read_yaml(find_preset(path))
        more = {key: content.pop(key) for key in Compared.model_fields if key in content}
        if not more.get("variants"):
            raise ValueError(
                f"{path} needs variants, such as {{mean: {{model.compression: mean}}}}"
            )
        try:
            compared = as_record(Compared, more)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        for name in compared.variants:
            if not is_folder_name(name):
                raise ValueError(f"{path}: variant {name!r} must be a name that a folder can have")
        if len(set(compared.seeds)) < len(compared.seeds):
            raise ValueError(f"{path}: seeds must differ, not {compared.seeds}")
        return Experiment(content, compared.variants, compared.seeds, compared.paper)

    def runs(self, out: Path, shards: Path | None) -> Iterator["Planned"]:
        """Every run, a seed of all variants before the next seed.

        Raises:
            ValueError: an override of a key that there is not, or a value out of range.
        """
        for seed in self.seeds:
            for name, overrides in self.variants.items():
                changes = {**(overrides or {}), "training.seed": seed}
                begun = changes.pop("from", None)
                if shards is not None:
                    changes["data.shards"] = str(shards)
                if not (begun is None or isinstance(begun, str)):
                    raise ValueError(f"variant {name}: from names the folder of a run, not {begun}")
                weights = None if begun is None else Path(begun.replace("{seed}", str(seed)))
                start = RunFolder(out / name / f"seed-{seed}", from_=weights)
                try:
                    yield Planned(start, load_config(RunConfig, overridden(self.preset, changes)))
                except ValueError as error:
                    raise ValueError(f"variant {name}: {error}") from None


def main(
    experiment: Path, out: Path, shards: Path | None = None, threads: Size = 1, table: bool = False
) -> None:
    """Train every variant of an experiment with every seed and compare their validation scores.

    Args:
        experiment: YAML file: a preset with variants; see configs/experiments/. One of these is
            also found by its name, such as experiments/sparse.
        out: folder of the runs, and of the table as table.md and table.json.
        shards: the shards, if they are not where the file says.
        threads: threads that each run computes with.
        table: only make the table of what is finished.
    """
    from lm.training.folder import kept_alone

    plan = Experiment.read(experiment)
    runs = list(plan.runs(out, shards))
    if not table:
        held = (
            f"another process runs experiments in {out}: wait until it ends, or give another --out"
        )
        with kept_alone(out, held):
            for run in runs:
                folder = run.start.run
                if not finished(run):
                    say(f"{folder.parent.name}, {folder.name.replace('-', ' ')}")
                    train_apart(run, threads)
                    write_sealed(folder / RESULT, result(folder, run.config))
                    write_table(plan, out)
    print(write_table(plan, out))


def train_apart(run: Planned, threads: int) -> None:
    """lm.train in a new process, because a process can join one run only, and a fork of one that
    has joined some run before hangs.

    Raises:
        SystemExit: with the status of training, if it did not finish.
    """
    process = get_context("spawn").Process(target=_train, args=(run, threads))
    process.start()
    # Whatever asks to end is for the training, which saves; to be asked twice does it no harm.
    with handling(lambda *_: process.terminate()):
        process.join()
    if process.exitcode:
        raise SystemExit(abs(process.exitcode))


def _train(run: Planned, threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    sections = {section.name: getattr(run.config, section.name) for section in fields(run.config)}
    try:
        train.main(run.start, **sections)
    except (OSError, ValueError) as error:
        # A process that ends by an error of its own shows a traceback.
        say(f"experiments: error: {error}")
        raise SystemExit(2) from None


def overridden(preset: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A preset with other values at dotted keys."""
    mapping: dict[str, Any] = copy.deepcopy(dict(preset))
    for key, value in changes.items():
        *sections, last = key.split(".")
        place = mapping
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise ConfigError(f"{key} lies in {section}, which is no section of keys")
        place[last] = value
    return mapping


def finished(run: Planned) -> bool:
    """Whether this run has its result.

    Raises:
        ValueError: the folder has the result of another config, or of other weights to begin with.
    """
    from lm.training.origin import ORIGIN, require_same_origin

    folder = run.start.run
    if not (folder / RESULT).is_file():
        return False
    another = run.start.from_ is None and (folder / ORIGIN).is_file()
    if another or read_result(folder).config != dump_config(run.config):
        raise ValueError(f"{folder} has the result of another config; give another --out folder")
    require_same_origin(run.start)
    return True


def read_result(folder: Path) -> Result:
    """What a run came to; ValueError if the file is damaged."""
    found: Result = read_record(Result, folder / RESULT, "remove it, and the run is looked at anew")
    return found


def result(folder: Path, config: RunConfig) -> dict[str, Any]:
    """What a finished run came to; the score is that of its last step on the validation split.

    Raises:
        ValueError: that is not a number.
    """
    from data.common.tensors import TensorFile
    from lm.runs import checkpoints
    from lm.runs.runlog import read_metrics

    metrics = read_metrics(folder / "metrics.jsonl")
    newest = checkpoints.newest(folder)
    assert newest is not None, "a finished run has saved its last step"
    weights = TensorFile(newest / checkpoints.WEIGHTS, checkpoints.MEND)
    speeds = [record["tokens_per_second"] for record in metrics if "tokens_per_second" in record]
    last = [record for record in metrics if record["step"] == metrics[-1]["step"]]
    score = {
        unit: bits
        for record in last
        for unit in BITS
        if (bits := record.get(f"validation_{unit}")) is not None
    }
    if not score:
        raise ValueError(f"{folder} has no finite score at its last step; lower its optim.lr")
    return {
        **score,
        "steps": metrics[-1]["step"],
        "parameters": sum(math.prod(weights.shape(name)) for name in weights),
        "tokens_per_second": median(speeds),
        "config": dump_config(config),
    }


@dataclass(frozen=True)
class Row:
    """A line of the table: one variant over its seeds."""

    variant: str
    seeds: int
    bits_per_byte: float | None
    bits_per_token: float | None
    """Instead, where the tokens do not give the text back."""
    deviation: float | None
    """Standard deviation over the seeds."""
    difference: float | None
    """To the first variant, mean over the seeds that both have."""
    difference_error: float | None
    """Standard error of that mean."""
    parameters: int
    steps: int
    tokens_per_second: float
    paper: float | None


def rows(plan: Experiment, out: Path) -> list[Row]:
    """A row for each variant that has a result, those of the file first and in its order."""
    others = sorted({path.parents[1].name for path in out.glob(f"*/seed-*/{RESULT}")})
    names = [*plan.variants, *(name for name in others if name not in plan.variants)]
    found = {
        name: {
            path.parent.name: read_result(path.parent)
            for path in sorted((out / name).glob(f"seed-*/{RESULT}"))
        }
        for name in names
    }
    base = {seed: bits_of(each.model_dump()) for seed, each in found[names[0]].items()}
    lines = []
    for name, results in found.items():
        if not results:
            continue
        scores = {seed: bits_of(each.model_dump()) for seed, each in results.items()}
        pairs = [score - base[seed] for seed, score in scores.items() if seed in base]
        any_result = next(iter(results.values()))
        bits_in = unit_of(any_result.model_dump())
        lines.append(
            Row(
                variant=name,
                seeds=len(scores),
                **(dict.fromkeys(BITS) | {bits_in: mean(scores.values())}),
                deviation=stdev(scores.values()) if len(scores) > 1 else None,
                difference=mean(pairs) if pairs and name != names[0] else None,
                difference_error=(
                    stdev(pairs) / len(pairs) ** 0.5
                    if len(pairs) > 1 and name != names[0]
                    else None
                ),
                parameters=any_result.parameters,
                steps=any_result.steps,
                tokens_per_second=median(r.tokens_per_second for r in results.values()),
                paper=plan.paper.get(name),
            )
        )
    return lines


def write_table(plan: Experiment, out: Path) -> str:
    """Write table.md and table.json; returns the Markdown."""
    lines = rows(plan, out)
    text = markdown(lines, bool(plan.paper))
    with writing_folder(out) as folder:
        (folder / "table.json").write_text(as_json([asdict(line) for line in lines]))
        (folder / "table.md").write_text(text + "\n")
    return text


def markdown(lines: list[Row], paper: bool) -> str:
    """The table in Markdown."""
    bits = bits_named(asdict(line) for line in lines)
    head = ["variant", bits, "to the first", "seeds", "parameters", "steps", "tokens/s"]
    table = [head + ["paper"] * paper, ["---"] * (len(head) + paper)]
    for line in lines:
        cells = [
            line.variant,
            _with_spread(f"{bits_of(asdict(line)):.4f}", line.deviation),
            "" if line.difference is None else _signed(line.difference, line.difference_error),
            f"{line.seeds}",
            f"{line.parameters:,}",
            f"{line.steps:,}",
            f"{line.tokens_per_second:,.0f}",
        ]
        table.append(cells + ([f"{line.paper:g}" if line.paper else ""] if paper else []))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in table)


def _signed(value: float, error: float | None) -> str:
    return _with_spread(f"{value:+.4f}", error)


def _with_spread(value: str, spread: float | None) -> str:
    return value if spread is None else f"{value} ± {spread:.4f}"


if __name__ == "__main__":
    command.run(main)
