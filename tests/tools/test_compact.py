"""Weights as one file: where it may be written, and a disk that is full."""

import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load, load_file

from data.common import tensors
from tools import compact


@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_pipe_gets_what_a_file_gets(sparse_run: Path, tmp_path: Path, form: str) -> None:
    compact.main(sparse_run, tmp_path / "file", form)
    os.mkfifo(tmp_path / "pipe")
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_bytes()))
    reader.start()
    compact.main(sparse_run, tmp_path / "pipe", form)
    reader.join(60)
    through, straight = load(read[0]), load_file(tmp_path / "file")
    assert through.keys() == straight.keys()
    assert all(torch.equal(tensor, straight[name]) for name, tensor in through.items())


@pytest.mark.bad_input("tools.compact")
@pytest.mark.parametrize("place", ["missing/x", ".", "/dev/full", "run", "run/x/config.yaml"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(
    sparse_run: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "lm.inference.loading.load_run", lambda *_: pytest.fail("the work was begun")
    )
    monkeypatch.setattr(
        "lm.inference.loading.load_trained", lambda *_: pytest.fail("the work was begun")
    )
    (tmp_path / "run").symlink_to(sparse_run)
    for form in ("dense", "sparse"):
        with pytest.raises(ValueError, match=r"make it first|is a folder|no room"):
            compact.main(sparse_run, tmp_path / place, form)
    with pytest.raises(ValueError, match="is what is read"):
        compact.main(sparse_run, sparse_run / "config.yaml")


@pytest.mark.bad_input("tools.compact")
@pytest.mark.parametrize("form", ["dense", "sparse"])
def test_a_full_disk_leaves_what_was_there(
    sparse_run: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    (tmp_path / "file").write_text("old")
    with pytest.raises(OSError, match="No space left"):
        compact.main(sparse_run, tmp_path / "file", form)
    assert (tmp_path / "file").read_text() == "old" and len(list(tmp_path.iterdir())) == 1
