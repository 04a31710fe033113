"""Hashes beside what is read for a number or a weight, checked when it is read.

A JSON record has the SHA-256 of its other fields in its own field `sha256`, a text that people may
read begins with a comment that holds the SHA-256 of the rest, and a folder that is published whole
may have a list `SHA256SUMS` as `sha256sum` writes it. Tensors have theirs in their own file
(data/common/tensors.py), and large files are looked at once on a machine
(data/common/remembering.py). What an earlier version wrote has no hashes: it is read unchecked,
which is said once.
"""

import json
import re
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from data.common.files import atomic_path, hash_file, hash_json, read_json, write_json
from data.common.say import say

SEAL = "sha256"
SUMS = "SHA256SUMS"
CHANGED = "has changed since it was written"
TEXT_SEAL = re.compile(rb"# sha256 of all below: ([0-9a-f]{64})\n")
SUMS_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")

_said: set[str] = set()


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with the hash of its fields beside them; errors as in `write_json`."""
    write_json(path, sealed(value))


def sealed(value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with the hash of its fields beside them."""
    assert SEAL not in value
    # Numbers of other libraries and tuples count as what they are in JSON.
    return value | {SEAL: hash_json(json.loads(json.dumps(value)))}


def read_sealed(path: Path, mend: str, expected: bool = True) -> Any:
    """A JSON value, without the hash that `write_sealed` put beside its fields.

    mend: what the user can do about a file that has changed; ends the sentence; expected: whether a
    file without a hash is told. ValueError for one that is not JSON or does not match its hash.
    """
    try:
        value = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; {mend}") from None
    if isinstance(value, dict) and SEAL in value:
        if value.pop(SEAL) != hash_json(value):
            raise ValueError(f"{path} {CHANGED}: it does not match its hash; {mend}")
    elif expected:
        tell_unchecked(path)
    return value


def seal_text(text: str) -> str:
    """A text with the hash of it in a comment before it."""
    return f"# sha256 of all below: {sha256(text.encode()).hexdigest()}\n{text}"


def check_text(path: Path, mend: str) -> None:
    """ValueError for a text that does not match the hash that `seal_text` put before it."""
    content = path.read_bytes()
    found = TEXT_SEAL.match(content)
    if found is None:
        if content.startswith(b"# sha256"):
            raise ValueError(f"{path} {CHANGED}: its first line is damaged; {mend}")
        tell_unchecked(path)
    elif found[1].decode() != sha256(content[found.end() :]).hexdigest():
        raise ValueError(f"{path} {CHANGED}: it does not match its hash; {mend}")


def write_sums(folder: Path, names: Iterable[str]) -> None:
    """Write the list of a folder's files with their hashes; `sha256sum -c SHA256SUMS` reads it.

    names: of files below the folder; those that are on its list already keep their place there.
    """
    listed = read_sums(folder, "remove it") or {}
    listed |= {name: hash_file(folder / name) for name in names}
    with atomic_path(folder / SUMS) as temporary:
        lines = [f"{digest}  {name}\n" for name, digest in sorted(listed.items())]
        temporary.write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path, mend: str) -> dict[str, str] | None:
    """SHA-256 by name of a folder's list, or None without one; ValueError for a damaged list."""
    path = folder / SUMS
    if not path.is_file():
        return None
    lines = path.read_bytes().decode(errors="replace").splitlines()
    found = [SUMS_LINE.fullmatch(line) for line in lines]
    if not all(found):
        raise ValueError(f"{path} {CHANGED}: a line of it is no hash; {mend}")
    return {line[2]: line[1] for line in found if line is not None}


def check_sums(folder: Path, mend: str) -> None:
    """Hash what a folder's list names, at reading speed.

    ValueError names the first file that is missing or does not match. A folder without a list is
    fine.
    """
    for name, digest in (read_sums(folder, mend) or {}).items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing, which {SUMS} lists; {mend}")
        if hash_file(folder / name) != digest:
            raise ValueError(f"{folder / name} {CHANGED}: it does not match {SUMS}; {mend}")


def tell_unchecked(path: Path) -> None:
    """Say once in this process that something has no hash, as before this version."""
    if not _said:
        line = f"{path} was written without hashes by an earlier version and is read unchecked"
        say(line)
    _said.add(str(path))
