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
from dataclasses import asdict, dataclass, fields, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any

from pydantic import Field

from data.common import command
from data.common.command import ConfigError, dump_config, find_preset, load_config
from data.common.files import as_json
from data.common.integrity import write_sealed
from data.common.outputs import writing_folder
from data.common.say import say
from data.common.schema import Count, Record, Size, as_record
from data.common.signals import handling, signal_name
from data.common.yamlfile import parse_yaml, read_yaml
from lm import train
from lm.inference.inference_config import BITS
from lm.runs.run_config import RunConfig, RunFolder
from tools.experiment_table import RESULT, Result, markdown, read_result, rows

LONGEST_NAME = 200
"""In bytes; file systems take 255."""


class Compared(Record):
    """What makes an experiment file of a preset."""

    variants: dict[str, dict[str, Any] | None]
    seeds: list[Count] = Field(default_factory=lambda: [0, 1, 2], min_length=1)
    paper: dict[str, float] = Field(default_factory=dict)


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
                    # A variant's own are what makes it one.
                    changes.setdefault("data.shards", str(shards))
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
        shards: the shards, if they are not where the file says; a variant's own stay.
        threads: threads that each run computes with, where training.threads says nothing.
        table: only make the table of what is finished.
    """
    from lm.threads import require_cores
    from lm.training.folder import kept_alone

    plan = Experiment.read(experiment)
    runs = list(plan.runs(out, shards))
    require_cores(threads)
    if table and not out.is_dir():
        raise ValueError(f"{out} is no folder of an experiment")
    # Hours of the first runs are not spent before a mistake in the last is found.
    for run in runs:
        if not finished(run, moved=table and shards is None) and not table:
            require_parts(run, out)
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
    from lm.training.stopping import STOPPED

    process = get_context("spawn").Process(target=_train, args=(run, threads))
    process.start()
    asked: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        asked.append(number)
        process.terminate()

    # Whatever asks to end is for the training, which saves; to be asked twice does it no harm.
    with handling(pass_on):
        process.join()
    code = process.exitcode or 0
    if code < 0 and asked:
        # Before it listened, so there was nothing to save.
        raise SystemExit(STOPPED)
    if code < 0:
        say(
            f"experiments: error: {run.start.run} was ended by {signal_name(-code)}; the same "
            "command goes on from its last checkpoint"
        )
        raise SystemExit(1)
    if code:
        raise SystemExit(code)


def _train(run: Planned, threads: int) -> None:
    training = replace(run.config.training, threads=run.config.training.threads or threads)
    config = replace(run.config, training=training)
    sections = {section.name: getattr(config, section.name) for section in fields(config)}
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


def require_parts(run: Planned, out: Path) -> None:
    """ValueError if what a run is made from is not there: shards, weights to begin with, a teacher;
    runs of this experiment may still come.
    """
    from data.shards import open_shards
    from data.stated import require_stated

    variant, data = run.start.run.parent.name, run.config.data
    try:
        require_stated(data, open_shards(data.shards))
    except ValueError as error:
        raise ValueError(f"variant {variant}: {error}") from None
    for other in (run.start.from_, run.config.training.teacher.run):
        if other is None or other.resolve().is_relative_to(out.resolve()):
            continue
        if not (other / "config.yaml").is_file():
            raise ValueError(f"variant {variant}: {other} holds no run")


def finished(run: Planned, moved: bool = False) -> bool:
    """Whether this run has its result; `moved`: whatever the folder of its shards was.

    Raises:
        ValueError: the folder has the result of another config, or of other weights to begin with.
    """
    from lm.training.origin import ORIGIN, require_same_origin

    folder = run.start.run
    if not (folder / RESULT).is_file():
        return False
    another = run.start.from_ is None and (folder / ORIGIN).is_file()
    if another or not is_of(read_result(folder), run.config, moved):
        raise ValueError(f"{folder} has the result of another config; give another --out folder")
    require_same_origin(run.start)
    return True


def is_of(found: Result, config: RunConfig, moved: bool) -> bool:
    """Whether a result came of a config; what joined the settings since was as it is by default."""
    if found.config is None:
        return False
    try:
        stored = load_config(RunConfig, parse_yaml(found.config))
    except ValueError:
        return False
    if moved:
        stored = replace(stored, data=replace(stored.data, shards=config.data.shards))
    return stored == config


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


def write_table(plan: Experiment, out: Path) -> str:
    """Write table.md and table.json; returns the Markdown."""
    lines = rows(list(plan.variants), plan.paper, out)
    text = markdown(lines, bool(plan.paper))
    with writing_folder(out) as folder:
        (folder / "table.json").write_text(as_json([asdict(line) for line in lines]))
        (folder / "table.md").write_text(text + "\n")
    return text


if __name__ == "__main__":
    command.run(main)
