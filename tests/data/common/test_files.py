"""Files that are complete or absent."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.common.files import atomic_path, hash_file, publish_folder, read_json, write_json
from data.common.locks import locked


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


def test_hashes_are_those_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert hash_file(tmp_path / "abc").startswith("ba7816bf")
    assert hash_file(tmp_path / "abc", "sha1").startswith("a9993e36")


HOLD = """
import sys, time
from pathlib import Path
from data.common.locks import locked
with locked(Path(sys.argv[1]), "the other"):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.dist
def test_a_lock_is_waited_for_and_ends_with_its_holder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = tmp_path / "lock"
    root = Path(__file__).parents[3]
    for seconds, kill in ((0.5, False), (600.0, True)):
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, lock, str(seconds)],
            cwd=root,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        if kill:
            os.kill(holder.pid, 9)
            holder.wait()
            assert lock.exists()
        with locked(lock, "the other"):
            pass
        holder.communicate()
        assert not lock.exists()
    assert capsys.readouterr().err == "waiting for the other to end\n"
