"""Text to measure with, where only its length matters."""

from pathlib import Path

import numpy as np

from data.options import DataConfig
from data.prepare import prepare
from data.shards import Shards, open_shards


def random_shards(folder: Path, size: int = 2_000_000) -> Shards:
    """Byte shards of random letters, in twenty documents.

    Args:
        folder: where they are made; must exist.
        size: bytes.
    """
    letters = np.random.default_rng(0).integers(97, 123, size, dtype=np.uint8)
    (folder / "text").mkdir()
    for number, part in enumerate(np.array_split(letters, 20)):
        (folder / "text" / f"{number}.txt").write_bytes(part.tobytes())
    target = folder / "shards"
    prepare(DataConfig("text", target, source=str(folder / "text")))
    return open_shards(target)
