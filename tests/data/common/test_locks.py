"""Locks: waited for or refused, gone with their holder, whatever the file system."""

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from filelock import FileLock

from data.common.locks import alone, beside, locked

ROOT = Path(__file__).parents[3]
HOLD = """
import sys, time
from pathlib import Path
from data.common.locks import locked
with locked(Path(sys.argv[1]), "the other"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@contextmanager
def holding(lock: Path, seconds: float) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock for some time."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, lock, str(seconds)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    yield holder
    holder.kill()
    holder.communicate()


@pytest.mark.dist
def test_a_lock_is_waited_for_and_ends_with_its_holder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock"
    for seconds, kill in ((0.5, False), (600.0, True)):
        with holding(lock, seconds) as holder:
            if kill:
                os.kill(holder.pid, 9)
                holder.wait()
                assert lock.exists()
            with locked(lock, "the other"):
                pass
        assert not lock.exists()
    assert capsys.readouterr().err == "waiting for the other to end\n"


@pytest.mark.dist
def test_a_lock_that_another_process_holds_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with holding(lock, 600.0) as holder:
        with (
            pytest.raises(ValueError, match="another writes here"),
            alone(lock, "another writes here"),
        ):
            pass
        assert lock.exists()
        holder.kill()
        holder.wait()
        with alone(lock, "another"), pytest.raises(ValueError, match="me"), alone(lock, "me"):
            pass
    assert not lock.exists()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.ESTALE])
def test_a_place_that_takes_no_lock_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(FileLock, "acquire", fail)
    for hold in (alone, locked):
        refused = pytest.raises(ValueError, match=f"nothing can be written in {tmp_path} .*mend")
        with refused, hold(tmp_path / "lock", "another"):
            pass


@pytest.mark.parametrize("folder", ["missing", "file", "proc"])
def test_a_folder_that_is_none_is_named(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    place = {"proc": Path("/proc/self")}.get(folder, tmp_path / folder)
    with pytest.raises(ValueError, match=str(place)), alone(place / "lock", "another"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_the_work_goes_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: int,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", fail)
    with alone(tmp_path / "lock", "another"):
        pass
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning:") and "has no locks" in line


def test_the_lock_of_what_is_made_lies_beside_it(tmp_path: Path) -> None:
    assert beside(tmp_path / "a" / ".." / "out") == tmp_path / ".out.lock"
