"""A result is written where it was asked for, and where it cannot be is found before the work."""

import os
import stat
import threading
from pathlib import Path

import pytest

from data.common.outputs import check_output, writing


@pytest.mark.parametrize("place", ["missing/a.json", ".", "/dev/full", "file/a.json"])
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r": |make it|choose"):
        check_output(tmp_path / place)


def test_an_input_is_not_replaced(tmp_path):
    (tmp_path / "in").write_text("text")
    (tmp_path / "link").symlink_to("in")
    with pytest.raises(ValueError, match="is what is read"):
        check_output(tmp_path / "link", tmp_path / "in")


def test_a_link_stays_one_and_its_file_is_replaced(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "link").symlink_to("file")
    with writing(tmp_path / "link") as path:
        path.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


def test_the_mode_follows_the_umask(tmp_path):
    with writing(tmp_path / "file") as path:
        path.write_text("text")
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_a_failure_leaves_what_was_there(tmp_path):
    (tmp_path / "file").write_text("old")

    def fail():
        with writing(tmp_path / "file") as path:
            path.write_text("half")
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        fail()
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_devices_and_pipes_are_written_where_they_are(tmp_path):
    check_output(Path("/dev/null"))
    with writing(Path("/dev/null")) as path:
        path.write_text("text")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    os.mkfifo(tmp_path / "pipe")
    said: list[str] = []
    reader = threading.Thread(target=lambda: said.append((tmp_path / "pipe").read_text()))
    reader.start()
    with writing(tmp_path / "pipe") as path:
        path.write_text("text")
    reader.join()
    assert said == ["text"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
