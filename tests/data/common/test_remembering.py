"""A large file is looked at once, until it changes, wherever the cache can and cannot be."""

import os
import threading
import time

import pytest

from data.common import remembering
from data.common.files import hash_file
from data.common.remembering import remembered
from data.common.schema import Record, Sha256


class Facts(Record):
    sha256: Sha256


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large and as written long ago, and a cache of its own."""
    monkeypatch.setattr(remembering, "SMALL", 10)
    monkeypatch.setattr(remembering, "SETTLED_S", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "tokens"
    path.write_bytes(bytes(1000))
    return path


class Look:
    def __init__(self, path):
        self.path, self.times = path, 0

    def __call__(self):
        self.times += 1
        return Facts(sha256=hash_file(self.path))


def test_a_file_that_stays_is_looked_at_once(large):
    look = Look(large)
    first = remembered(large, Facts, look)
    assert remembered(large, Facts, look) == first
    assert look.times == 1


def test_a_changed_file_is_looked_at_again_even_with_its_old_time(large):
    look = Look(large)
    remembered(large, Facts, look)
    state = large.stat()
    time.sleep(0.02)
    large.write_bytes(bytes(999) + b"\1")
    os.utime(large, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert remembered(large, Facts, look).sha256 == hash_file(large)
    assert look.times == 2


def test_a_file_that_changed_just_now_is_not_remembered(large, monkeypatch):
    monkeypatch.setattr(remembering, "SETTLED_S", 60.0)
    look = Look(large)
    remembered(large, Facts, look)
    remembered(large, Facts, look)
    assert look.times == 2


def test_a_small_file_leaves_nothing_behind(large, monkeypatch, tmp_path):
    monkeypatch.setattr(remembering, "SMALL", 10_000)
    remembered(large, Facts, Look(large))
    assert not (tmp_path / "cache").exists()


def test_what_fails_is_not_remembered(large):
    def fail():
        raise ValueError("out of range")

    for _ in range(2):
        with pytest.raises(ValueError, match="out of range"):
            remembered(large, Facts, fail)


@pytest.mark.parametrize("what", ["file", "no home", "relative"])
def test_without_a_cache_folder_the_file_is_looked_at_each_time(large, what, monkeypatch, tmp_path):
    if what == "file":
        (tmp_path / "cache").write_text("in the way")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", "cache" if what == "relative" else "")
        monkeypatch.setenv("HOME", str(large))
    look = Look(large)
    remembered(large, Facts, look)
    remembered(large, Facts, look)
    assert look.times == 2


def test_a_damaged_cache_is_made_anew(large, tmp_path):
    look = Look(large)
    remembered(large, Facts, look)
    (entry,) = (tmp_path / "cache").rglob("*.json")
    for content in [b"", b"{}", entry.read_bytes().replace(b'"inode": ', b'"inode": 1')]:
        entry.write_bytes(content)
        assert remembered(large, Facts, look).sha256 == hash_file(large)
    assert look.times == 4


def test_several_at_once_wait_for_the_first(large):
    class Slow(Look):
        def __call__(self):
            time.sleep(0.2)
            return super().__call__()

    look = Slow(large)
    threads = [threading.Thread(target=remembered, args=(large, Facts, look)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert look.times == 1
