"""Writes checkpoints beside the training that goes on, and clears out old ones.

A checkpoint is written to a hidden folder and synced by a thread of each rank. When all ranks have
agreed between two steps that they are through, the first one renames the folder. Old checkpoints
are renamed before they are removed, so that a folder with a checkpoint's name is always whole.
Whatever fails on the way leaves the earlier checkpoints as they were.
"""

import os
import re
import shutil
import threading
from pathlib import Path

from data.common.files import atomic_path, publish_folder, remove_folder, sync
from data.common.integrity import write_sealed
from data.common.say import warn
from data.common.schema import as_record
from data.common.tensors import save_tensors
from lm.runs.checkpoints import (
    LATEST,
    STATE,
    CheckpointState,
    lacking,
    listed,
    name_of,
    read_state,
    step_of,
)
from lm.runs.run_config import TrainingConfig
from lm.training.dist import World
from lm.training.resume import Snapshot


class Writer:
    """One rank's part in writing checkpoints, one at a time."""

    def __init__(self, run: Path, world: World, training: TrainingConfig) -> None:
        self.folder, self.world, self.training = run / "checkpoints", world, training
        self.snapshot: Snapshot | None = None
        self.thread: threading.Thread | None = None
        self.error: Exception | None = None

    @property
    def busy(self) -> bool:
        """Whether this rank is still writing."""
        return self.thread is not None and self.thread.is_alive()

    def start(self, snapshot: Snapshot) -> None:
        """Begin to write a checkpoint with all ranks; `finish` must have ended the one before."""
        assert self.snapshot is None
        self.snapshot, self.error, self.thread = snapshot, None, None
        if self.world.first:
            try:
                clear_remains(self.folder)
                self._partial(snapshot).mkdir(parents=True)
            except OSError as error:
                self.error = error
        self.world.barrier()
        if self.error is None:
            self.thread = threading.Thread(target=self._write, args=(snapshot,), daemon=True)
            self.thread.start()

    def wait(self) -> None:
        """Wait until this rank has written its part."""
        if self.thread is not None:
            self.thread.join()

    def finish(self, failed: bool) -> Path | None:
        """End a checkpoint that no rank is busy with, on all ranks at the same step.

        Args:
            failed: whether writing failed on any rank.

        Returns:
            The checkpoint's folder; None if it was not written, with `error` set on the ranks that
            know why.
        """
        assert self.snapshot is not None
        assert not self.busy
        snapshot, self.snapshot, self.thread = self.snapshot, None, None
        final = self.folder / name_of(snapshot.step)
        if self.world.first:
            try:
                if not failed:
                    self._publish(snapshot, final)
                    return final
            except OSError as error:
                self.error = error
            remove_folder(self._partial(snapshot))
            return None
        return None if failed else final

    def _partial(self, snapshot: Snapshot) -> Path:
        return self.folder / f".{name_of(snapshot.step)}.partial"

    def _write(self, snapshot: Snapshot) -> None:
        partial = self._partial(snapshot)
        try:
            for name, source in snapshot.links.items():
                share(source, partial / name)
            for name, tensors in snapshot.files.items():
                save_tensors(tensors, partial / name)
                sync(partial / name)
            if self.world.first:
                state = as_record(CheckpointState, {"step": snapshot.step, **snapshot.state})
                write_sealed(partial / STATE, state.model_dump(exclude_unset=True))
        except Exception as error:
            # Nobody else hears of what goes wrong in a thread.
            self.error = error

    def _publish(self, snapshot: Snapshot, final: Path) -> None:
        publish_folder(self._partial(snapshot), final)
        try:
            with atomic_path(self.folder / LATEST) as temporary:
                temporary.write_text(final.name + "\n")
        except OSError as error:
            warn(f"{self.folder / LATEST} was not written ({error.strerror})")
        try:
            clear_out(self.folder.parent, self.training)
        except OSError as error:
            warn(f"old checkpoints in {self.folder} were not removed ({error.strerror})")


def share(source: Path, target: Path) -> None:
    """Have a file in a second place without its room, where the file system can do that."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def clear_out(run: Path, training: TrainingConfig) -> None:
    """Remove the checkpoints that training.keep, keep_every and keep_best do not keep.

    What is no whole checkpoint is left alone.
    """
    steps = {step: path for step, path in listed(run).items() if lacking(path) is None}
    kept = set(list(steps)[-training.keep :])
    if training.keep_every is not None:
        kept |= {step for step in steps if step % training.keep_every == 0}
    if training.keep_best:
        states = {step: read_state(path) for step, path in steps.items()}
        scores = {
            step: state.validation_bits_per_byte or state.validation_bits_per_token
            for step, state in states.items()
        }
        scored = [(score, step) for step, score in scores.items() if score is not None]
        kept |= {min(scored)[1]} if scored else set()
    for step in steps.keys() - kept:
        gone = steps[step].with_name(f".{name_of(step)}.removed")
        steps[step].rename(gone)
        _remove(gone)


def clear_remains(folder: Path) -> None:
    """Remove what a process that was killed had begun to write, or to remove."""
    for path in folder.iterdir() if folder.is_dir() else ():
        found = re.fullmatch(r"\.(step-[0-9]+)\.(partial|removed)", path.name)
        if found and step_of(found[1]) is not None:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder, or a link to one, which stays."""
    if path.is_symlink():
        path.unlink()
    else:
        remove_folder(path)
