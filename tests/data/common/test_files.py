"""Files that are complete or absent."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from data.common.files import atomic_path, hash_file, publish_folder, read_json, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "file"
    target.write_text("old")

    def fail() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_json_is_sorted_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    text = (tmp_path / "a.json").read_text()
    assert text.index('"a"') < text.index('"b"')
    assert text.endswith("}\n")
    assert read_json(tmp_path / "a.json") == {"a": "é", "b": 1}


def test_a_published_folder_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text("x")
    publish_folder(folder, tmp_path / "final")
    assert (tmp_path / "final" / "inner" / "file").read_text() == "x"
    assert not folder.exists()


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_what_is_published_has_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    """Also what a temporary file of the standard library was, and whatever may be run."""
    before = os.umask(umask)
    try:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        (folder / "inner").mkdir()
        handle, name = tempfile.mkstemp(dir=folder / "inner")
        os.close(handle)
        publish_folder(folder, tmp_path / "final")
        with atomic_path(tmp_path / "program") as temporary:
            temporary.write_text("#!/bin/sh\n")
            temporary.chmod(0o700)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    modes = {path: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "final").rglob("*")}
    assert modes[tmp_path / "final" / "inner"] == 0o777 & ~umask
    assert modes[tmp_path / "final" / "inner" / Path(name).name] == 0o666 & ~umask
    for path in ("final", "program"):
        assert stat.S_IMODE((tmp_path / path).stat().st_mode) == 0o777 & ~umask


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc").startswith("ba7816bf")
    assert hash_file(tmp_path / "abc", "sha1").startswith("a9993e36")
