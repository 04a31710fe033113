"""Tensor files: their permissions, devices, and a disk that is full."""

import os
import stat
import threading
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import load, load_file

from data.common import tensors
from data.common.tensors import save_tensors

SOME = {"a": torch.arange(5.0), "b": torch.ones(2, 3, dtype=torch.int64)}


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_file_has_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        save_tensors(SOME, tmp_path / "file", {"kind": "some"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert torch.equal(load_file(tmp_path / "file")["a"], SOME["a"])


def test_a_pipe_is_written_and_stays_one(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    save_tensors(SOME, pipe)
    reader.join(timeout=20)
    assert torch.equal(load(read[0])["b"], SOME["b"]) and pipe.is_fifo()


def test_what_the_system_refuses_is_an_error_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError):
        save_tensors(SOME, tmp_path / "missing" / "file")

    def full(*_: object) -> None:
        raise safetensors.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left") as error:
        save_tensors(SOME, tmp_path / "file")
    assert error.value.errno == 28 and error.value.filename == str(tmp_path / "file")
