"""What storage and other programs do to files."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.common.files import hash_file
from data.common.integrity import SEAL, write_sealed
from data.manifest import MANIFEST, content_hash


def flip(file: Path, bit: int) -> bytes:
    """Change one bit of a file; returns what it held before."""
    whole = file.read_bytes()
    changed = bytearray(whole)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    return whole


def rewrite(file: Path, **changes: Any) -> None:
    """Change fields of a JSON record, its hash as well; a field that becomes None is left out."""
    record = json.loads(file.read_text()) | changes
    record.pop(SEAL, None)
    write_sealed(file, {key: value for key, value in record.items() if value is not None})


def recount(shards: Path) -> None:
    """Make the manifest of changed shards match their files, as an honest builder of them would."""
    manifest = json.loads((shards / MANIFEST).read_text())
    for facts in manifest["splits"].values():
        for name in facts["files"]:
            path = shards / name
            facts["files"][name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    rewrite(shards / MANIFEST, splits=manifest["splits"], hash=content_hash(manifest))


def flips(file: Path, times: int, header: int = 0) -> Iterator[bytes]:
    """Change a bit of a file in turn at places spread over it, more often in its second half, and
    put each back; yields what the file holds otherwise.

    header: bytes at the beginning that are left alone.
    """
    rng, size = random.Random(file.name), file.stat().st_size
    for turn in range(times):
        first = header if turn % 3 == 0 else size // 2
        whole = flip(file, 8 * rng.randrange(first, size) + rng.randrange(8))
        yield whole
        file.write_bytes(whole)
