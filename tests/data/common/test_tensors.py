"""Tensor files: their permissions, devices, a disk that is full, and bits that change."""

import json
import os
import random
import stat
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load, load_file, save_file

from data.common import integrity, tensors
from data.common.tensors import TensorFile, load_tensors, save_tensors

SOME = {"a": torch.arange(5.0), "b": torch.ones(2, 3, dtype=torch.int64)}
MEND = "use another"
TENSORS = {
    "weight": torch.arange(600, dtype=torch.float32).view(20, 30),
    "half": torch.ones(7, 3, dtype=torch.bfloat16),
    "flags": torch.tensor([True, False, True]),
    "step": torch.tensor(3.0),
    "none": torch.empty(0, 5),
}


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


@pytest.fixture
def file(tmp_path):
    save_tensors(TENSORS, tmp_path / "a.safetensors", {"kind": "test"})
    return tmp_path / "a.safetensors"


def test_tensors_of_every_kind_come_back(file):
    found = TensorFile(file, MEND)
    assert found.about == {"kind": "test"}
    assert set(found) == set(TENSORS)
    assert len(found) == len(TENSORS)
    assert all(torch.equal(found[name], tensor) for name, tensor in TENSORS.items())


def test_a_tensor_of_one_element_may_have_any_stride(tmp_path: Path) -> None:
    column = torch.arange(8).view(2, 4)[1:, 2]
    assert column.is_contiguous() and column.stride() == (4,)
    save_tensors({"a": column}, tmp_path / "file")
    assert TensorFile(tmp_path / "file", "mend")["a"].tolist() == [6]


def test_no_flipped_bit_is_read(file):
    whole = file.read_bytes()
    # The length, the header and the data; of the header a part, as it is long.
    rng = random.Random(0)
    name = 8 * whole.index(b'"sha256"')
    bits = {*range(64), *range(name, name + 64), *rng.sample(range(8 * len(whole)), 1500)}
    silent = []
    for bit in bits:
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        file.write_bytes(changed)
        try:
            load_tensors(file, MEND)
        except ValueError as error:
            if not (str(error).startswith(str(file)) and str(error).endswith(MEND)):
                silent.append(bit)
            continue
        silent.append(bit)
    assert silent == []


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 7, b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}", b"text " * 100],
)
def test_what_is_no_safetensors_file_is_a_sentence(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors cannot be read \(.*\); use another$"):
        load_tensors(path, MEND)


def test_a_truncated_or_missing_file_is_a_sentence(file):
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="cannot be read"):
        load_tensors(file, MEND)
    file.unlink()
    with pytest.raises(ValueError, match="cannot be read"):
        load_tensors(file, MEND)


def test_a_missing_tensor_is_named(file):
    found = TensorFile(file, MEND)
    assert "bias" not in found
    with pytest.raises(ValueError, match=r"a\.safetensors lacks bias; use another"):
        found["bias"]


def test_a_file_without_hashes_is_read_and_said_once(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(integrity, "_said", set())
    for name in "ab":
        save_file({"x": torch.ones(2)}, tmp_path / name)
        assert load_tensors(tmp_path / name, MEND)["x"].tolist() == [1, 1]
    assert capsys.readouterr().err.count("is read unchecked") == 1


def test_hashes_of_other_tensors_are_a_damaged_header(tmp_path):
    save_file({"x": torch.ones(2)}, tmp_path / "a", {"sha256": json.dumps({"y": "0" * 64})})
    with pytest.raises(ValueError, match="its header is damaged"):
        load_tensors(tmp_path / "a", MEND)
    save_file({"x": torch.ones(2)}, tmp_path / "a", {"sha256": json.dumps(["x"])})
    with pytest.raises(ValueError, match="its header is damaged"):
        load_tensors(tmp_path / "a", MEND)


def test_the_hash_does_not_depend_on_where_a_tensor_lies(tmp_path):
    tensor = torch.from_numpy(np.arange(12.0)).view(3, 4)
    save_tensors({"x": tensor.T.contiguous()}, tmp_path / "a")
    assert torch.equal(load_tensors(tmp_path / "a", MEND)["x"], tensor.T)


def test_what_is_read_lies_where_torch_would_put_it(tmp_path: Path) -> None:
    """Elsewhere some processors sum the same numbers in another order."""
    odd = {f"{number}": torch.arange(number + 1, dtype=torch.float64) for number in range(9)}
    save_tensors(odd, tmp_path / "file", {})
    file = TensorFile(tmp_path / "file", "mend it")
    assert [file[name].data_ptr() % 64 for name in odd] == [0] * 9
    assert all(torch.equal(file[name], tensor) for name, tensor in odd.items())
