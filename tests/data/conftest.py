"""Splits and folders of text for the tests of the data pipeline."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data.shards import DOCUMENT_DTYPE, Split
from data.tokenizers.registry import ByteTokenizer


@pytest.fixture(scope="session")
def make_split() -> Callable[..., Split]:
    """Function from document lengths to a split in memory, whose tokens tell where they are."""

    def make(lengths: Sequence[int], shards_hash: str = "hash") -> Split:
        total = sum(lengths)
        split = Split(
            Path(), "train", total, 0, "bits_per_byte", None, shards_hash, ByteTokenizer()
        )
        documents = np.zeros(len(lengths), dtype=DOCUMENT_DTYPE)
        documents["tokens"] = documents["bytes"] = lengths
        documents["offset"] = np.cumsum(lengths) - lengths
        # Ids above the vocabulary: a target is its own position, and `start` is none of them.
        split.__dict__["tokens"] = np.arange(1000, 1000 + total, dtype=np.uint32)
        split.__dict__["documents"] = documents
        return split

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[[dict[str, bytes]], Path]:
    """Function that writes files, by relative path, into a new folder."""

    def write_files(files: dict[str, bytes]) -> Path:
        folder = tmp_path / "source"
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(text)
        return folder

    return write_files
