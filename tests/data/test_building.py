"""What a build may touch, and what happens to it on the way: other folders, changes, signals."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import prepare as program
from data import sources
from data.common import files
from data.common.files import write_json
from data.prepare import DataConfig, prepare

ROOT = Path(__file__).parents[2]
Write = Callable[[dict[str, bytes]], Path]
TEXTS = {f"{split}/a.txt": b"some text of a split\n" * 9 for split in ("train", "valid", "test")}


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fill(work: Path, kind: str) -> None:
    """Somebody's own thing where a build would work."""
    if kind == "file":
        work.write_text("mine")
    elif kind == "link":
        (work.parent / "elsewhere").mkdir()
        work.symlink_to(work.parent / "elsewhere")
    else:
        (work / "shards").mkdir(parents=True)
        (work / "shards" / "diary.txt").write_text("mine")
    if kind == "plan of one's own":
        write_json(work / "plan.json", {"monday": "work"})


OWN = ("file", "link", "folder", "plan of one's own")


@pytest.mark.parametrize("kind", OWN)
def test_what_no_build_has_made_is_left_alone(tmp_path: Path, write: Write, kind: str) -> None:
    config = DataConfig("text", tmp_path / "s", str(write(TEXTS)))
    fill(tmp_path / "s.building", kind)
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=r"s\.building is in the way, where the build works"):
        prepare(config, workers=1)
    assert contents(tmp_path) == before
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("kind", OWN)
def test_shards_are_opened_beside_somebodys_own_folder(
    tmp_path: Path, write: Write, kind: str
) -> None:
    config = DataConfig("text", tmp_path / "s", str(write(TEXTS)))
    expected = prepare(config, workers=1).hash
    fill(tmp_path / "s.building", kind)
    before = contents(tmp_path)
    assert prepare(config, workers=1).hash == expected
    assert contents(tmp_path) == before


def test_somebodys_own_file_is_no_lock(tmp_path: Path, write: Write) -> None:
    config = DataConfig("text", tmp_path / "s", str(write(TEXTS)))
    (tmp_path / ".s.lock").write_text("mine")
    with pytest.raises(ValueError, match=r"\.s\.lock is in the way of a lock"):
        prepare(config, workers=1)
    assert (tmp_path / ".s.lock").read_text() == "mine"


@pytest.mark.parametrize("left", ["empty", "half a plan", "plan"])
def test_what_a_killed_build_has_left_is_used(tmp_path: Path, write: Write, left: str) -> None:
    config = DataConfig("text", tmp_path / "s", str(write(TEXTS)))
    work = tmp_path / "s.building"
    work.mkdir()
    if left == "half a plan":
        (work / ".plan.json.1.partial").write_text('"0123')
    if left == "plan":
        (work / "parts").mkdir()
        write_json(work / "plan.json", "0" * 64)
    prepare(config, workers=1)
    assert not work.exists()


def test_a_removal_that_was_killed_leaves_what_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = tmp_path / "s.building"
    (work / "parts").mkdir(parents=True)
    write_json(work / "plan.json", "0" * 64)
    whole = program.remove_folder

    def killed(folder: Path) -> None:
        whole(folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "remove_folder", killed)
    with pytest.raises(KeyboardInterrupt):
        program.remove_work(work)
    assert program.is_work(work)


def with_times(path: Path, text: bytes) -> None:
    """Write another text of the same size, with the times of the old one, as `cp -p` does."""
    before = path.stat()
    path.write_bytes(text)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("how", ["longer", "same size and times", "replaced", "removed", "new"])
@pytest.mark.parametrize("corpus", ["text", "pg19"])
def test_a_source_that_changes_during_a_build_is_refused(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, how: str, corpus: str
) -> None:
    names = {"train/1.txt": "test/2.txt", "validation/3.txt": "validation/3.txt"}
    texts = dict.fromkeys([*names, *names.values()], b"some text of a split\n" * 9)
    source = write(texts)
    path = source / "train" / "1.txt"
    whole = sources.hash_files

    def changing(*arguments: Any) -> Any:
        # After all was read, and before it is hashed.
        if how == "longer":
            path.write_bytes(b"longer" * 100)
        elif how == "same size and times":
            with_times(path, b"x" * path.stat().st_size)
        elif how == "replaced":
            (source / "other").write_bytes(path.read_bytes())
            (source / "other").replace(path)
        elif how == "new":
            (source / "train" / "9.txt").write_bytes(b"new")
        found = whole(*arguments)
        if how == "removed":
            path.unlink()
        return found

    monkeypatch.setattr(sources, "hash_files", changing)
    config = DataConfig(corpus, tmp_path / "s", str(source), vocabulary="bytes")
    with pytest.raises(ValueError, match="has changed while it was read: call again"):
        prepare(config, workers=1)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["source"]
    monkeypatch.undo()
    assert "validation" in prepare(config, workers=1).splits


def test_an_interrupted_build_of_a_source_that_has_changed_begins_anew(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(TEXTS)
    config = DataConfig("text", tmp_path / "s", str(source))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "assemble", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(config, workers=1)
    monkeypatch.undo()
    text = b"X" * len(TEXTS["train/a.txt"])
    with_times(source / "train" / "a.txt", text)
    assert prepare(config, workers=1).split("train").tokens.tobytes() == text


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_build_with_one_line_and_it_goes_on(
    tmp_path: Path, write: Write, number: signal.Signals
) -> None:
    source = write({f"train/{i}.txt": b"a few words in a line\n" * 400_000 for i in range(6)})
    arguments = ("--corpus", "text", "--vocabulary", "words", "--workers", "2")
    places = ("--source", str(source), "--shards", str(tmp_path / "s"))
    command = [sys.executable, "-m", "data.prepare", *arguments, *places]
    process = subprocess.Popen(
        command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob("s.building/*/parts")):
        time.sleep(0.01)
    # As a terminal does it: to all processes of the group.
    os.killpg(process.pid, number)
    assert process.stderr is not None
    said = process.stderr.read().splitlines()
    assert process.wait() == 128 + number
    assert [line for line in said if ": " not in line or "error" in line] == said[-1:]
    assert said[-1].endswith("; the same command goes on with the build")
    assert (tmp_path / "s.building").exists() and not (tmp_path / "s").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "train" in again.stdout
    assert not (tmp_path / "s.building").exists()
    assert not multiprocessing.active_children()


def test_a_disk_that_is_full_at_any_moment_is_told_and_the_build_goes_on(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write(TEXTS)
    whole, room, calls = files.sync, 10**6, 0

    def sync(path: Path) -> None:
        nonlocal room, calls
        calls += 1
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        whole(path)

    monkeypatch.setattr(files, "sync", sync)
    expected = prepare(DataConfig("text", tmp_path / "s", str(source), "words"), workers=1).hash
    for full_at in range(calls - 1):
        config = DataConfig("text", tmp_path / f"s{full_at}", str(source), "words")
        room = full_at
        with pytest.raises(OSError, match="is full: make room and call again, and the build"):
            prepare(config, workers=1)
        assert not config.shards.exists()
        room = 10**6
        assert prepare(config, workers=1).hash == expected
        assert not (tmp_path / f"s{full_at}.building").exists()


@pytest.mark.dist
def test_who_waits_for_a_build_that_is_killed_goes_on_with_it(tmp_path: Path, write: Write) -> None:
    source = write({f"train/{i}.txt": b"a few words in a line\n" * 300_000 for i in range(6)})
    arguments = ("--corpus", "text", "--vocabulary", "words", "--workers", "1")
    places = ("--source", str(source), "--shards", str(tmp_path / "s"))
    command = [sys.executable, "-m", "data.prepare", *arguments, *places]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("s.building/*/parts")):
        time.sleep(0.01)
    second = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert second.stderr is not None
    assert "waiting for another build" in second.stderr.readline()
    first.kill()
    first.wait()
    said = second.stderr.read()
    assert second.wait() == 0, said
    assert {path.name for path in tmp_path.iterdir()} == {"source", "s"}
