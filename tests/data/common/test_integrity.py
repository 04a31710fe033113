"""A changed bit in whatever is read for a number is found, and what has no hash is said once."""

import json
import shutil
import subprocess

import pytest

from data.common import integrity
from data.common.files import write_json
from data.common.integrity import (
    SUMS,
    check_sums,
    check_text,
    read_sealed,
    seal_text,
    write_sealed,
    write_sums,
)

MEND = "make it again"


def flip(path, bit):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(integrity, "_said", set())


def test_a_sealed_record_comes_back_without_its_seal(tmp_path):
    write_sealed(tmp_path / "a.json", {"value": 1.5, "names": ["a", "ü"]})
    assert read_sealed(tmp_path / "a.json", MEND) == {"value": 1.5, "names": ["a", "ü"]}
    assert json.loads((tmp_path / "a.json").read_text())["sha256"]


def test_no_bit_of_a_sealed_record_can_change_its_value(tmp_path):
    path, value = tmp_path / "a.json", {"value": 1.5, "names": ["a", "b"]}
    write_sealed(path, value)
    whole = path.read_bytes()
    refused = 0
    for bit in range(8 * len(whole)):
        path.write_bytes(whole)
        flip(path, bit)
        try:
            found = read_sealed(path, MEND)
        except ValueError as error:
            refused += str(error).startswith(str(path)) and str(error).endswith(MEND)
        else:
            # White space, or the seal's own name: then it is a field that no record knows.
            assert {k: v for k, v in found.items() if k in value} == value
    assert refused > 7.5 * len(whole)


def test_a_value_without_a_seal_is_read_as_it_is(tmp_path):
    write_json(tmp_path / "a.json", [1, 2])
    assert read_sealed(tmp_path / "a.json", MEND) == [1, 2]


def test_a_sealed_text_is_what_it_was(tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(seal_text("lr: 0.001\n"))
    check_text(path, MEND)
    for bit in range(8 * path.stat().st_size):
        flip(path, bit)
        if path.read_bytes().startswith(b"# sha256"):
            with pytest.raises(ValueError, match=r"config\.yaml has changed .* make it again"):
                check_text(path, MEND)
        flip(path, bit)
    assert capsys.readouterr().err == ""
    path.write_text("lr: 0.001\n")
    check_text(path, MEND)
    check_text(path, MEND)
    assert capsys.readouterr().err.count("is read unchecked") == 1


@pytest.fixture
def listed(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "weights").write_bytes(bytes(1000))
    (tmp_path / "sub" / "a name").write_text("words")
    write_sums(tmp_path, ["weights", "sub/a name"])
    return tmp_path


def test_a_list_is_that_of_sha256sum(listed):
    check_sums(listed, MEND)
    if shutil.which("sha256sum"):
        command = ["sha256sum", "--check", "--strict", SUMS]
        assert subprocess.run(command, cwd=listed, capture_output=True).returncode == 0


@pytest.mark.parametrize("name", ["weights", "sub/a name", SUMS])
@pytest.mark.parametrize("place", [0.1, 0.4, 0.6, 0.9])
def test_a_bit_in_a_listed_folder_is_found(listed, name, place):
    path = listed / name
    flip(path, int(8 * path.stat().st_size * place))
    with pytest.raises(ValueError, match=r"make it again$"):
        check_sums(listed, MEND)


def test_a_listed_file_that_lacks_is_named(listed):
    (listed / "weights").unlink()
    with pytest.raises(ValueError, match=r"weights is missing, which SHA256SUMS lists"):
        check_sums(listed, MEND)


def test_a_folder_without_a_list_is_fine(tmp_path):
    check_sums(tmp_path, MEND)


def test_entries_join_a_list_that_is_there(listed):
    (listed / "weights").write_bytes(b"new")
    (listed / "more").write_bytes(b"more")
    write_sums(listed, ["weights", "more"])
    check_sums(listed, MEND)
    assert len((listed / SUMS).read_text().splitlines()) == 3
