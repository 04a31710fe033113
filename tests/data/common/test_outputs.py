"""A result is written where it was asked for, and where it cannot be is found before the work."""

import os
import stat
import threading
from pathlib import Path

import pytest

from data.common.integrity import read_sealed
from data.common.outputs import (
    check_folder,
    check_output,
    write_result,
    writing,
    writing_folder,
)


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


@pytest.mark.parametrize("kind", ["same", "link", "hard", "relative", "folder", "below"])
def test_what_is_read_is_found_by_whatever_name(tmp_path, monkeypatch, kind):
    source = tmp_path / "run" / "file"
    source.parent.mkdir()
    source.write_text("text")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(source)
    (tmp_path / "hard").hardlink_to(source)
    names = {"same": source, "link": Path("link"), "hard": Path("hard")}
    names |= {"relative": Path("run/../run/file"), "folder": source, "below": Path("run/new")}
    read = source.parent if kind in ("folder", "below") else source
    with pytest.raises(ValueError, match="is what is read"):
        check_output(names[kind], None, tmp_path / "missing", read)
    check_output(tmp_path / "other", source.parent, source)
    assert source.read_text() == "text"


def test_a_file_that_is_there_may_be_kept(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(ValueError, match="is there already"):
        check_output(tmp_path / "file", overwrite=False)
    check_output(tmp_path / "file")
    check_output(tmp_path / "new", overwrite=False)
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_name_that_no_file_can_have_is_found(tmp_path):
    with pytest.raises(ValueError, match="may not be written"):
        check_output(tmp_path / ("a" * 255))
    with pytest.raises(ValueError, match="may not be written"):
        check_output(Path("/proc/result.json"))
    (tmp_path / "link").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="has no room"):
        check_output(tmp_path / "link")


@pytest.mark.parametrize("place", ["file", "file/below", "input", "input/below"])
def test_a_folder_for_results_is_looked_at_before_the_work(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "input").mkdir()
    with pytest.raises(ValueError, match=r"name a folder|is a file|another folder"):
        check_folder(tmp_path / place, tmp_path / "input")
    check_folder(tmp_path / "new/below", tmp_path / "input")
    check_folder(tmp_path, tmp_path / "input")
    assert not (tmp_path / "new").exists()


def test_a_result_is_written_to_a_file_a_device_or_nowhere(tmp_path):
    write_result(tmp_path / "a.json", {"b": 1})
    assert (tmp_path / "a.json").read_text().startswith('{\n  "b": 1,\n  "sha256": "')
    assert read_sealed(tmp_path / "a.json", "") == {"b": 1}
    write_result(Path("/dev/null"), {"b": 1})
    write_result(None, {"b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_result(tmp_path / "a.json", float("nan"))
    assert read_sealed(tmp_path / "a.json", "") == {"b": 1}


def fill(folder: Path, text: str) -> None:
    for name in ("a", "b"):
        (folder / name).write_text(text)


def fail_in(target: Path) -> None:
    with writing_folder(target) as folder:
        fill(folder, "half")
        raise OSError("gone")


def test_a_new_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "above/out"
    with pytest.raises(OSError, match="gone"):
        fail_in(target)
    assert not any(target.parent.iterdir())
    left = target.parent / f".out.{2**22 + 1}.partial"
    left.mkdir()
    mine = target.parent / ".out.mine.partial"
    mine.mkdir()
    with writing_folder(target) as folder:
        fill(folder, "text")
        assert not target.exists()
    assert {path.name for path in target.parent.iterdir()} == {"out", mine.name}
    assert [(target / name).read_text() for name in ("a", "b")] == ["text", "text"]


def test_files_in_a_folder_are_replaced_together(tmp_path):
    fill(tmp_path, "old")
    (tmp_path / "own").write_text("a user's")
    (tmp_path / "a").rename(tmp_path / "linked")
    (tmp_path / "a").symlink_to("linked")
    with pytest.raises(OSError, match="gone"):
        fail_in(tmp_path)
    assert (tmp_path / "a").read_text() == (tmp_path / "b").read_text() == "old"
    with writing_folder(tmp_path) as folder:
        fill(folder, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "a": "new",
        "linked": "new",
        "b": "new",
        "own": "a user's",
    }
    assert (tmp_path / "a").is_symlink()
