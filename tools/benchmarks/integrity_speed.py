"""Hashes: what they add to writing and reading a checkpoint's file and to opening shards."""

import os
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from data.assemble import write_header
from data.common import remembering
from data.common.files import sync
from data.common.outputs import check_output
from data.common.schema import Size
from data.common.tensors import load_tensors, save_tensors
from data.manifest import FileFacts, SplitFacts
from data.split_files import open_tokens
from tools.benchmarks.building import CPU
from tools.benchmarks.timing import core_clock, machine, report, take_turns

VOCABULARY = 256


def main(
    megabytes: Size = 1024, rounds: Size = 5, folder: Path | None = None, json: Path | None = None
) -> None:
    """Time SHA-256, a file of tensors with hashes and without, and tokens at first and second.

    Args:
        megabytes: size of the file of tensors, and of that of tokens.
        rounds: how often each is done; medians are reported.
        folder: where the files are written, on the disk that matters; by default a temporary one.
        json: file for the result.
    """
    check_output(json)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        result = tensors(Path(place), megabytes, rounds) | tokens(Path(place), megabytes, rounds)
    report({"megabytes": megabytes} | result | machine(CPU), json)


def tensors(folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """Rates of hashing, writing and reading tensors, in GB/s."""
    several = {str(i): torch.randn(megabytes * 2**20 // 64) for i in range(16)}
    size = sum(tensor.nbytes for tensor in several.values())
    plain, hashed = folder / "plain", folder / "hashed"

    def write_plain() -> None:
        save_file(several, plain)
        sync(plain)

    def write_hashed() -> None:
        save_tensors(several, hashed)
        sync(hashed)

    actions = {
        "hash": lambda: [sha256(tensor.numpy().data) for tensor in several.values()],
        "write": write_plain,
        "write with hashes": write_hashed,
        "read": lambda: [tensor.clone() for tensor in load_file(plain).values()],
        "read with hashes": lambda: [t.clone() for t in load_tensors(hashed, "").values()],
    }
    taken = take_turns(actions, CPU, rounds, clock=core_clock(CPU))
    return {"gigabytes_per_second": {name: round(size / s / 1e9, 3) for name, s in taken.items()}}


def tokens(folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """Seconds until a file of tokens is open: when it is looked at, and when it is known."""
    path, length = folder / "train.tokens.npy", megabytes * 2**20
    ids = np.random.default_rng(0).integers(VOCABULARY, size=length, dtype=np.uint8)
    with path.open("wb") as file:
        write_header(file, ids.dtype, length)
        file.write(ids.data)
    facts = FileFacts(bytes=path.stat().st_size, sha256=sha256(path.read_bytes()).hexdigest())
    split = SplitFacts(
        documents=1,
        tokens=length,
        bytes=length,
        words=0,
        denominator_words=None,
        files={path.name: facts},
    )
    actions = {
        "first": lambda: open_tokens(path, split, VOCABULARY, anew=True),
        "again": lambda: open_tokens(path, split, VOCABULARY),
    }
    cache = {"XDG_CACHE_HOME": str(folder / "cache")}
    # What was written just now would not be remembered.
    with patch.dict(os.environ, cache), patch.object(remembering, "SETTLED_S", -1.0):
        taken = take_turns(actions, CPU, rounds, clock=core_clock(CPU))
    return {"open_seconds": {name: round(s, 5) for name, s in taken.items()}}
