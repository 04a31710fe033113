"""Files that are complete or absent: write aside, sync, rename."""

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path beside `target`; sync and rename it on success, remove it on failure.

    A reader sees the old file or the new one, never a part of it, even after a crash. It has the
    permissions of the umask, whatever wrote it.
    """
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        follow_umask(temporary)
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Force a file's or folder's contents to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def follow_umask(path: Path) -> None:
    """Give a file or folder the permissions of one that is made by open() or mkdir(); a program
    that others may run stays one.

    Temporary files of the standard library and safetensors' files are their owner's alone.
    """
    # The mask can be read by setting it only; for that moment it is the strictest.
    mask = os.umask(0o077)
    os.umask(mask)
    mode = path.stat().st_mode
    wanted = 0o777 if stat.S_ISDIR(mode) or mode & 0o111 else 0o666
    # Of a file of somebody else, such as one that a hard link shares, nothing is changed.
    with suppress(PermissionError):
        path.chmod(wanted & ~mask)


def publish_folder(temporary: Path, final: Path) -> None:
    """Sync everything in `temporary`, then rename the folder to `final`, which must not exist.

    Both must lie on the same file system. After a crash `final` is whole or absent. Everything in
    it has the permissions of the umask.
    """
    for folder, _, names in os.walk(temporary):
        for name in names:
            follow_umask(Path(folder, name))
            sync(Path(folder, name))
        follow_umask(Path(folder))
        sync(Path(folder))
    temporary.rename(final)
    sync(final.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder and all in it; one that is not there is fine."""
    shutil.rmtree(folder, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as `as_json`; errors as there."""
    text = as_json(value)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def as_json(value: Any) -> str:
    """JSON with sorted keys and a newline at the end, in ASCII.

    ValueError for a number that JSON does not have: NaN or an infinity.
    """
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def read_json(path: Path) -> Any:
    """Read a JSON file; ValueError names the file when it is not JSON."""
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error})") from None


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text; ValueError for one that is not JSON, is nested so deeply that it
    cannot be read, has a key twice, or a number that JSON does not have (NaN, Infinity).
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number of JSON")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(key for key in keys if keys.count(key) > 1)!r} stands twice")
    return values


def hash_file(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's bytes, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def hash_json(value: Any) -> str:
    """SHA-256 of a value's canonical JSON: equal values have equal hashes."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
