"""What storage and other programs do to files."""

import json
from pathlib import Path
from typing import Any

from data.common.integrity import SEAL, write_sealed


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
