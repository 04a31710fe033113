"""Where results go: looked at before the work, replaced whole after it.

A program that takes `--out` or `--json` calls `check_output` (or `check_folder`) first, so that a
folder that lacks or a path that is a folder is found before hours of work, and writes through
`writing`, `write_result` or `writing_folder` at the end, before it shows anything.
"""

import glob
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data.common.files import as_json, atomic_path, publish_folder, remove_folder
from data.common.integrity import sealed

FULL = os.makedev(1, 7)
"""The device /dev/full, whatever names it."""


def check_output(path: Path | None, *inputs: Path | None, overwrite: bool = True) -> None:
    """Find out before the work whether its result can be written to `path`.

    Args:
        path: a file that may be there, a device, a FIFO, or a link to one of these; None: nothing
            is to be written.
        inputs: files that are read and must not be replaced, and folders of such files.
        overwrite: whether a file that is there may be replaced.

    Raises:
        ValueError: the folder is not there, `path` is a folder or one of `inputs` or lies in one,
            is there and is to be kept, or writing there is not allowed.
    """
    if path is None:
        return
    target = resolved(path)
    try:
        if target.is_dir():
            raise ValueError(f"{path} is a folder: name a file in it")
        if in_place(target):
            _try_device(path, target)
        elif any(reads(source, target) for source in inputs if source is not None):
            raise ValueError(f"{path} is what is read: give the result another name")
        elif not target.parent.is_dir():
            raise ValueError(f"{path} lies in a folder that is not there: make it first")
        elif target.exists() and not overwrite:
            raise ValueError(
                f"{path} is there already: remove it, give another name, or say --overwrite true"
            )
        elif target.exists() and not os.access(target, os.W_OK):
            raise ValueError(f"{path} may not be written: choose another place")
        else:
            _try_folder(target.parent, f".{target.name}.{os.getpid()}.partial")
    except OSError as error:
        raise ValueError(
            f"{path} may not be written ({error.strerror}): choose another place"
        ) from None


def check_folder(path: Path | None, *inputs: Path | None) -> None:
    """Find out before the work whether its results can be written into a folder.

    Args:
        path: a folder that may be there; those above it that are not are made with it.
        inputs: files and folders that are read and must not be replaced; `path` may hold them.

    Raises:
        ValueError: it is a file, one of `inputs` or in one, or may not be written.
    """
    if path is None:
        return
    target = resolved(path)
    try:
        if target.exists() and not target.is_dir():
            raise ValueError(f"{path} is a file: name a folder")
        if any(reads(source, target) for source in inputs if source is not None):
            raise ValueError(f"{path} is what is read: give the results another folder")
        there = target
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise ValueError(f"{path} lies below {there}, which is a file: choose another place")
        _try_folder(there, f".{target.name}.{os.getpid()}.partial")
    except OSError as error:
        raise ValueError(
            f"{path} may not be written ({error.strerror}): choose another place"
        ) from None


def reads(source: Path, target: Path) -> bool:
    """Whether a resolved path is a file or folder that is read, or lies in such a folder."""
    if target == source.resolve():
        return True
    if not source.exists():
        return False
    if target.exists() and target.samefile(source):
        return True
    return source.is_dir() and target.is_relative_to(source.resolve())


def _try_device(path: Path, target: Path) -> None:
    found = target.stat()
    if stat.S_ISSOCK(found.st_mode):
        raise ValueError(f"{path} is a socket: name a file")
    if found.st_rdev == FULL:
        raise ValueError(f"{path} has no room: choose another place")
    if stat.S_ISBLK(found.st_mode):
        raise ValueError(f"{path} is a disk: name a file")
    if not os.access(target, os.W_OK):
        raise ValueError(f"{path} may not be written: choose another place")


def _try_folder(folder: Path, name: str) -> None:
    """Make a file of such a name in a folder and remove it: permissions do not tell everything."""
    trial = folder / name
    try:
        trial.touch()
    finally:
        trial.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Yield the path to write a result to.

    A file appears whole or not at all, with the permissions of the umask; the file that a link
    names is replaced, not the link; devices and FIFOs are written where they are.
    """
    target = resolved(path)
    if in_place(target):
        yield target
        return
    with atomic_path(target) as temporary:
        yield temporary


def write_result(path: Path | None, value: Any) -> None:
    """Write a result where the user asked for it, as `as_json`; None: nowhere.

    One that is an object has the hash of its fields beside them (data/common/integrity.py).
    """
    if path is None:
        return
    text = as_json(sealed(value) if isinstance(value, dict) else value)
    with writing(path) as place:
        place.write_text(text, encoding="utf-8")


@contextmanager
def writing_folder(folder: Path) -> Iterator[Path]:
    """Yield a folder to write several files into, which then appear in `folder` together.

    A folder that is not there, or is empty, appears whole or not at all. In one that holds files
    they replace those of their names, in the order of their names, once all are complete.
    """
    target = resolved(folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_after_killed(target)
    aside = target.with_name(f".{target.name}.{os.getpid()}.partial")
    aside.mkdir()
    try:
        yield aside
        if not target.exists() or not any(target.iterdir()):
            publish_folder(aside, target)
            return
        with ExitStack() as stack:
            # What is entered last is renamed first.
            for path in sorted(aside.iterdir(), reverse=True):
                shutil.copyfile(path, stack.enter_context(writing(target / path.name)))
    finally:
        remove_folder(aside)


def _clear_after_killed(target: Path) -> None:
    """Remove what processes that were killed have left of `writing_folder`."""
    for path in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        number = path.name.removeprefix(f".{target.name}.").removesuffix(".partial")
        if number.isdecimal() and path.is_dir() and not _runs(int(number)):
            remove_folder(path)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def resolved(path: Path) -> Path:
    """What a path names in the end."""
    try:
        return path.expanduser().resolve()
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} cannot be followed ({error})") from None


def in_place(target: Path) -> bool:
    """Whether something is there that must not be replaced: a device, a FIFO or a socket."""
    try:
        mode = target.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))
