"""A run's folder: one training at a time, what that goes on from, and what it writes first.

config.yaml     settings with which the run goes on
origin.json     which weights the run began with, if with another run's
changes.jsonl   what was otherwise before, each time that settings were changed or the run was
                set back to an earlier checkpoint
env.json, vocabulary/, metrics.jsonl, checkpoints/
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.common.files import sync
from data.common.locks import alone
from data.common.outputs import writing
from lm.runs import checkpoints
from lm.runs.adopted_config import BASE, copy_base, is_adopted
from lm.runs.run_config import RunConfig, RunFolder, changed, read_config, write_config
from lm.runs.runlog import MetricsLog, read_metrics, write_environment
from lm.training.origin import ORIGIN, require_same_origin, write_origin
from lm.training.trainer import Trainer

CONFIG = "config.yaml"
CHANGES = "changes.jsonl"
OURS = {
    *(CONFIG, CHANGES, ORIGIN, BASE, ".lock"),
    *("env.json", "metrics.jsonl", "vocabulary", "checkpoints"),
    *("samples", "profile", "tensorboard", "wandb", "launch.sh", "launch.sbatch"),
}
"""What a run may have written before its first checkpoint."""


@dataclass(frozen=True)
class Start:
    """Where a training in a run's folder begins."""

    config: RunConfig
    checkpoint: Path | None = None
    """None at the beginning."""
    changes: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    """Settings that are not as they were: new and old value."""
    later: tuple[Path, ...] = ()
    """Checkpoints after the one that is gone back to, oldest first."""

    def spoken(self, run: Path) -> str:
        """What there is to say of it; nothing of a new run."""
        if self.checkpoint is None:
            return ""
        line = f"continue {run} from step {checkpoints.step_of(self.checkpoint.name)}"
        if self.changes:
            said = (f"{name} {new} (was {old})" for name, (new, old) in self.changes.items())
            line += f" with {', '.join(said)}"
        if self.later:
            line += f"; later checkpoints ({len(self.later)}) are set aside"
        return line


@contextmanager
def kept_alone(folder: Path, held: str) -> Iterator[None]:
    """A folder, made if need be, that one process at a time works in.

    Folders that were made and in which nothing was written go again at the end.

    Args:
        folder: may be there.
        held: see data.common.locks.alone.

    Raises:
        ValueError: another process works there, or it is no folder that can be written in.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}): name another") from None
    try:
        with alone(folder / ".lock", held):
            yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()


def training_in(run: Path) -> str:
    """What is said to a second training in a run's folder."""
    return f"another process trains in {run}: wait until it ends, or give another --run folder"


def begin(at: RunFolder, wanted: RunConfig) -> Start:
    """Where a training with a config begins; nothing is written.

    Raises:
        ValueError: the folder holds something else, or what it holds is damaged, or the config is
            another run's.
    """
    run, name = at.run, at.checkpoint
    _check_checkpoints(run)
    there = checkpoints.listed(run)
    if (run / "metrics.jsonl").exists():
        read_metrics(run / "metrics.jsonl")
    if not there:
        _require_unfinished(run)
        return Start(wanted, None if name is None else checkpoints.find(run, name))
    if not (run / CONFIG).is_file():
        raise ValueError(
            f"{run} holds checkpoints but not their {CONFIG}; put it back or give another --run "
            "folder"
        )
    if is_adopted(run / CONFIG):
        raise ValueError(
            f"{run} was adopted and is no training to go on with: give a new --run folder and "
            f"begin with its weights, --from {run}"
        )
    require_same_origin(at)
    changes = changed(wanted, read_config(run / CONFIG), str(run))
    if name is None or (not changes and _set_back(run, name)):
        return Start(wanted, checkpoints.newest(run), changes)
    chosen = checkpoints.find(run, name)
    later = list(there.values())[list(there.values()).index(chosen) + 1 :]
    return Start(wanted, chosen, changes, tuple(later))


def _check_checkpoints(run: Path) -> None:
    """Refuse a folder of checkpoints that would be misunderstood."""
    place = run / "checkpoints"
    if place.exists() and not place.is_dir():
        raise ValueError(f"{place} is no folder: move it away")
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        if checkpoints.step_of(path.name) is not None and not path.is_dir():
            raise ValueError(f"{path} has the name of a checkpoint and is none: move it away")


def _require_unfinished(run: Path) -> None:
    """A folder without checkpoint may hold what a run wrote before its first, and nothing else."""
    for path in sorted(run.iterdir()) if run.is_dir() else ():
        if path.name not in OURS and not re.fullmatch(r"\..*\.partial", path.name):
            raise ValueError(f"{run} holds {path.name} and no run; give a new --run folder")
    place = run / "checkpoints"
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    strange = [name for name in names if not name.startswith(".")]
    latest = place / checkpoints.LATEST
    if strange == [checkpoints.LATEST]:
        pointed = latest.read_bytes().decode(errors="replace").strip() if latest.is_file() else ""
        strange = [pointed] if checkpoints.step_of(pointed) is not None else []
    if strange:
        raise ValueError(
            f"{place} has no checkpoint, but there is or was {strange[0]}: put its checkpoints "
            "back, or remove the folder to begin again"
        )
    if (last := _logged(run)) and last >= 2 * read_config(run / CONFIG).training.save_every:
        # The second checkpoint is begun when the first is whole.
        raise ValueError(
            f"{run} has records up to step {last} and no checkpoint: put its checkpoints back, or "
            "remove metrics.jsonl to begin again"
        )


def _logged(run: Path) -> int:
    """The last step that a run has a record of; 0 without one."""
    path = run / "metrics.jsonl"
    if not (path.is_file() and (run / CONFIG).is_file()):
        return 0
    return max((record["step"] for record in read_metrics(path)), default=0)


def _set_back(run: Path, name: str) -> bool:
    """Whether the last change was to go back to this checkpoint: the same command goes on."""
    path = run / CHANGES
    lines = path.read_bytes().splitlines() if path.is_file() else []
    try:
        last = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return False
    return isinstance(last, dict) and last.get("set_back_to") == name


def describe(run: Path, trainer: Trainer, begun: Start) -> None:
    """Make the run's folder say what it holds, and end where training goes on.

    Later checkpoints, and the records after the one that is gone on from, are moved to
    checkpoints/set-aside-N.

    Raises:
        ValueError: that cannot be written.
    """
    try:
        _describe(run, trainer, begun)
    except OSError as error:
        raise ValueError(
            f"{run} cannot be written ({error.strerror}): mend that and give the same command again"
        ) from None


def _describe(run: Path, trainer: Trainer, begun: Start) -> None:
    aside = _set_aside(run, trainer.step, begun.later) if begun.later else None
    if begun.changes or begun.later:
        _note(run, trainer.step, begun, aside)
    (run / "vocabulary").mkdir(parents=True, exist_ok=True)
    write_config(run / CONFIG, trainer.config)
    write_environment(run)
    if trainer.origin is not None:
        write_origin(run, trainer.origin)
        copy_base(Path(trainer.origin.run), run)
    trainer.shards.vocabulary.save(run / "vocabulary")
    MetricsLog(run / "metrics.jsonl").cut(trainer.step)


def _set_aside(run: Path, step: int, later: tuple[Path, ...]) -> Path:
    """Move checkpoints, the newest first, so that a kill on the way leaves an ordinary run."""
    place = run / "checkpoints"
    taken = {path.name for path in place.iterdir()}
    number = next(n for n in range(1, len(taken) + 2) if f"set-aside-{n}" not in taken)
    aside = place / f"set-aside-{number}"
    aside.mkdir()
    (aside / "metrics.jsonl").write_text(MetricsLog(run / "metrics.jsonl").after(step))
    for path in reversed(later):
        path.rename(aside / path.name)
        sync(place)
    return aside


def _note(run: Path, step: int, begun: Start, aside: Path | None) -> None:
    """Append to changes.jsonl."""
    assert begun.checkpoint is not None
    values = {name: {"was": old, "is": new} for name, (new, old) in begun.changes.items()}
    record: dict[str, Any] = {"step": step, "settings": values}
    if aside is not None:
        record |= {"set_back_to": begun.checkpoint.name, "set_aside": aside.name}
    path = run / CHANGES
    before = path.read_bytes() if path.exists() else b""
    before += b"" if before.endswith(b"\n") or not before else b"\n"
    with writing(path) as temporary:
        temporary.write_bytes(before + json.dumps(record, default=str).encode() + b"\n")
