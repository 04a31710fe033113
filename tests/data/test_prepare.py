"""data.prepare: deterministic, parallel, restartable after a kill, and clear about mistakes."""

import errno
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data import documents
from data import prepare as program
from data.common import files
from data.prepare import DataConfig, prepare
from data.shards import open_shards

ROOT = Path(__file__).parents[2]
Write = Callable[[dict[str, bytes]], Path]


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "data.prepare", *map(str, arguments)]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a few hundred bytes, so that little text makes many."""
    monkeypatch.setattr(documents, "PART_BYTES", 300)
    monkeypatch.setattr(documents, "BLOCK_BYTES", 100)


def lines(count: int, seed: int = 0) -> bytes:
    """Lines of words, some with letters beyond ASCII."""
    draw = random.Random(seed)
    words = ["house", "naïve", "the", "of", "x", "₤5", "and"]
    text = (" ".join(draw.choices(words, k=draw.randrange(12))) for _ in range(count))
    return "\r\n".join(text).encode() + b"\n"


@pytest.fixture
def corpus(write: Write) -> Path:
    """A few documents of several parts each, one of them empty."""
    texts = {f"train/{i}.txt": lines(30 * i, i) for i in range(4)}
    return write(texts | {"validation/a.txt": lines(9), "test/b.txt": lines(7)})


def test_shards_hold_the_text_of_a_folder_byte_for_byte(tmp_path: Path, write: Write) -> None:
    source = write({"train/a.txt": b"one two\n", "train/b.txt": b"", "valid/c.txt": b"\xff"})
    shards = prepare(DataConfig("text", tmp_path / "shards", str(source)), workers=1)
    train = shards.split("train")
    assert train.tokens.tobytes() == b"one two\n"
    assert train.names == ["train/a.txt", "train/b.txt"]
    assert train.documents.tolist() == [(0, 8, 8, 2), (8, 0, 0, 0)]
    assert shards.split("validation").tokens.tobytes() == b"\xff"
    assert (train.bytes, train.words, train.unit) == (8, 2, "bits_per_byte")
    assert shards.splits == ["train", "validation"]


@pytest.mark.parametrize("vocabulary", ["bytes", "words", "sentencepiece"])
@pytest.mark.usefixtures("small_parts")
def test_documents_over_many_parts_are_joined_exactly(
    tmp_path: Path, corpus: Path, vocabulary: Any
) -> None:
    options = {"vocabulary_size": 280} if vocabulary == "sentencepiece" else {}
    config = DataConfig("text", tmp_path / "s", str(corpus), vocabulary, **options)
    shards = prepare(config, workers=1)
    train, texts = shards.split("train"), [lines(30 * i, i) for i in range(4)]
    assert train.documents["bytes"].tolist() == [len(text) for text in texts]
    assert train.documents["words"].tolist() == [len(text.split()) for text in texts]
    assert train.documents["tokens"].sum() == len(train.tokens)
    for document, text in zip(train.documents, texts, strict=True):
        ids = train.tokens[document["offset"] : document["offset"] + document["tokens"]]
        if vocabulary == "words":
            assert shards.vocabulary.decode(ids).split() == text.split()
        else:
            assert shards.vocabulary.decode(ids) == text
            assert shards.vocabulary.token_bytes[ids].sum() == document["bytes"]
        assert shards.vocabulary.count_words(ids) == document["words"]


def test_size_of_parts_and_number_of_workers_do_not_change_the_hash(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = set()
    for number, (part_bytes, workers) in enumerate([(300, 1), (300, 3), (1 << 20, 1)]):
        monkeypatch.setattr(documents, "PART_BYTES", part_bytes)
        config = DataConfig("text", tmp_path / str(number), str(corpus), "words")
        hashes.add(prepare(config, workers=workers).hash)
    assert len(hashes) == 1


def test_a_second_call_finds_the_shards_and_notices_changes(tmp_path: Path, corpus: Path) -> None:
    config = DataConfig("text", tmp_path / "s", str(corpus))
    first = prepare(config, workers=1)
    stamps = {path: path.stat().st_mtime_ns for path in config.shards.rglob("*")}
    assert prepare(config).hash == first.hash
    assert {path: path.stat().st_mtime_ns for path in config.shards.rglob("*")} == stamps
    (corpus / "train/1.txt").touch()
    assert prepare(config).hash == first.hash
    with pytest.raises(ValueError, match="prepared with other options"):
        prepare(DataConfig("text", config.shards, str(corpus), column="story"))
    (corpus / "train/1.txt").write_bytes(b"changed")
    with pytest.raises(ValueError, match="prepared from other files"):
        prepare(config)
    assert open_shards(config.shards, verify=True).hash == first.hash


def test_nothing_but_the_shards_is_left(tmp_path: Path, corpus: Path) -> None:
    prepare(DataConfig("text", tmp_path / "out" / "s", str(corpus)), workers=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s"]


@pytest.mark.parametrize("moment", range(6))
@pytest.mark.usefixtures("small_parts")
def test_a_build_killed_at_any_write_continues_to_the_same_shards(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Each sync is a moment to be killed at; which are chosen changes with every run of tests."""

    class Killed(BaseException):
        pass

    def config(name: str) -> DataConfig:
        return DataConfig("text", tmp_path / name, str(corpus), "words")

    calls = 0
    whole_sync = files.sync

    def counting(path: Path) -> None:
        nonlocal calls
        calls += 1
        whole_sync(path)

    monkeypatch.setattr(files, "sync", counting)
    expected = prepare(config("whole"), workers=1).hash
    last = random.randrange(1, calls + 1) if moment else calls
    calls = 0

    def dying(path: Path) -> None:
        counting(path)
        if calls == last:
            raise Killed

    monkeypatch.setattr(files, "sync", dying)
    # A killed process runs no `finally`: temporary files and folders stay.
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(Killed):
        prepare(config("killed"), workers=1)
    monkeypatch.undo()
    monkeypatch.setattr(documents, "PART_BYTES", 300)
    assert prepare(config("killed"), workers=1).hash == expected
    assert {path.name for path in tmp_path.iterdir()} == {"source", "whole", "killed"}


@pytest.mark.dist
def test_sigkill_at_random_moments_then_continuing_gives_the_same_hash(
    tmp_path: Path, write: Write
) -> None:
    source = write({f"train/{i}.txt": lines(40_000, i) for i in range(10)})
    options = ("--corpus", "text", "--source", source, "--vocabulary", "words", "--workers", "2")
    started = time.monotonic()
    assert run(*options, "--shards", tmp_path / "whole").returncode == 0
    duration = time.monotonic() - started
    killed = 0
    for latest in (0.5, 0.9, 0.9, 0.9):
        process = subprocess.Popen(
            command(*options, "--shards", tmp_path / "killed"),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            process.wait(timeout=random.uniform(0.1, latest) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed
    assert run(*options, "--shards", tmp_path / "killed").returncode == 0
    hashes = {open_shards(tmp_path / name, verify=True).hash for name in ("whole", "killed")}
    assert len(hashes) == 1


@pytest.mark.dist
def test_two_builds_into_one_place_wait_for_each_other(tmp_path: Path, write: Write) -> None:
    source = write({f"train/{i}.txt": lines(20_000, i) for i in range(5)})
    arguments = ("--corpus", "text", "--source", source, "--vocabulary", "words", "--workers", "1")
    processes = [
        subprocess.Popen(
            command(*arguments, "--shards", tmp_path / "s"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert len({out.splitlines()[-1] for out, _ in outputs}) == 1
    assert sum("the shards are there" in out for out, _ in outputs) == 2
    open_shards(tmp_path / "s", verify=True)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "s"}


@pytest.mark.usefixtures("small_parts")
def test_a_full_disk_says_so_and_the_build_continues(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = DataConfig("text", tmp_path / "s", str(corpus))
    room = 3
    whole_sync = files.sync

    def sync(path: Path) -> None:
        nonlocal room
        room -= 1
        if room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        whole_sync(path)

    monkeypatch.setattr(files, "sync", sync)
    with pytest.raises(OSError, match="is full: make room and call again"):
        prepare(config, workers=1)
    assert not config.shards.exists()
    finished = list((tmp_path / "s.building").rglob("*.json"))
    assert finished
    room = 10**6
    assert prepare(config, workers=1).split("train").bytes == sum(
        len(lines(30 * i, i)) for i in range(4)
    )


@pytest.mark.parametrize("file", [r"\.000000\.train\.tokens", r"train\.documents\.npy"])
def test_a_write_to_a_full_disk_says_so(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """As the system says it: /dev/full is a disk that is always full."""
    whole_open = Path.open

    def full(path: Path, mode: str = "r", **options: Any) -> Any:
        instead = mode == "wb" and re.match(file, path.name)
        return whole_open(Path("/dev/full") if instead else path, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match="is full: make room and call again"):
        prepare(DataConfig("text", tmp_path / "s", str(corpus)), workers=1)


def test_a_killed_worker_is_told_and_the_build_continues(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", 1 << 20)
    source = write({f"train/{i}.txt": lines(40_000, i) for i in range(8)})
    config = DataConfig("text", tmp_path / "s", str(source), "words")

    def kill_one() -> None:
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        while True:
            for child in children.read_text().split():
                if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                    os.kill(int(child), signal.SIGKILL)
                    return
            time.sleep(0.01)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(ChildProcessError, match="a worker was killed"):
        prepare(config, workers=2)
    killer.join()
    assert not multiprocessing.active_children()
    assert (tmp_path / "s.building").exists()
    assert prepare(config, workers=1).split("train").documents["tokens"].all()


def test_command_line_prints_a_table_and_repeats_at_once(tmp_path: Path, write: Write) -> None:
    source = write({"train/a.txt": b"one two\n", "test/b.txt": b"three\n"})
    arguments = ("--corpus", "text", "--source", source, "--shards", tmp_path / "s")
    first = run(*arguments)
    assert first.returncode == 0, first.stderr
    table = [line.split() for line in first.stdout.splitlines()]
    assert table[0] == ["split", "documents", "tokens", "bytes", "words"]
    assert table[1:3] == [["train", "1", "8", "8", "2"], ["test", "1", "6", "6", "1"]]
    assert "hash" in first.stdout
    again = run(*arguments, "--verify")
    assert again.stdout.splitlines()[0].endswith("the shards are there")
    assert again.stdout.splitlines()[1:] == first.stdout.splitlines()


def test_the_data_section_of_a_preset_is_read(tmp_path: Path, write: Write) -> None:
    write({"train/a.txt": b"one\n"})
    preset = tmp_path / "preset.yaml"
    preset.write_text(f"data:\n  corpus: text\n  shards: {tmp_path / 's'}\nmodel:\n  width: 8\n")
    assert run("--config", preset, "--source", tmp_path / "source").returncode == 0
    assert open_shards(tmp_path / "s").corpus == "text"


def test_mistakes_end_the_program_with_status_2_and_one_line(tmp_path: Path) -> None:
    for arguments, message in {
        ("--corpus", "enwik9"): "did you mean enwik8?",
        ("--corpus", "enwik8", "--source", "nowhere"): "nowhere is not there",
        ("--corpus", "text", "--prefix"): "prefix has no effect with corpus text",
    }.items():
        result = run(*arguments, "--shards", tmp_path / "s")
        assert result.returncode == 2
        assert message in result.stderr
        assert result.stderr.count("\n") == 1
        assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path, corpus: Path) -> None:
    place = tmp_path / "s"
    place.mkdir()
    (place / "diary.txt").write_text("mine")
    with pytest.raises(ValueError, match="in the way"):
        prepare(DataConfig("text", place, str(corpus)))
    assert [path.name for path in place.iterdir()] == ["diary.txt"]


def test_the_vocabulary_of_other_shards_can_be_used(
    tmp_path: Path, corpus: Path, write: Write
) -> None:
    first = prepare(DataConfig("text", tmp_path / "a", str(corpus), "words"), workers=1)
    config = DataConfig(
        "text", tmp_path / "b", str(corpus / "test"), "words", vocabulary_from=tmp_path / "a"
    )
    second = prepare(config, workers=1)
    assert second.vocabulary.hash == first.vocabulary.hash
    assert prepare(config).hash == second.hash
    wrong = DataConfig(
        "text", tmp_path / "c", str(corpus), "sentencepiece", vocabulary_from=tmp_path / "a"
    )
    with pytest.raises(ValueError, match="has the vocabulary words, not sentencepiece"):
        prepare(wrong, workers=1)


def test_versions_and_options_are_in_the_manifest(tmp_path: Path, corpus: Path) -> None:
    prepare(DataConfig("text", tmp_path / "s", str(corpus)), workers=1)
    manifest = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert set(manifest["versions"]) == {"python", "numpy"}
    assert manifest["options"] == {"corpus": "text", "vocabulary": "bytes", "column": "text"}
    assert program.table(open_shards(tmp_path / "s")).endswith(manifest["hash"])
