"""Data sets of the hub, and local copies of them, that are not what they should be."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from data.prepare import DataConfig, prepare
from tests.data.containers import parquet, tarred

Write = Callable[[dict[str, bytes]], Path]


class Harmful:
    """What writes a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


NAMES = {
    "hub:": "say which data set of the hub is meant",
    "hub: ": "names no data set: it is hub:OWNER/NAME",
    "hub:a/b/c": "names no data set",
    "hub:a\nb/c": r"hub:a\\nb/c names no data set",
    "hub:https://example.org/datasets/a/b": "names no data set",
    "hub:s3://bucket/a": "names no data set",
    "hub:~nobody/x": "names no data set",
    "hub:/nowhere/x": "/nowhere/x is no folder",
    "hub:./nowhere": "./nowhere is no folder",
    "hub:owner/name": "owner/name cannot be reached on the hub",
}


@pytest.mark.parametrize("source", NAMES)
def test_a_name_that_is_none_is_told_as_such(tmp_path: Path, source: str) -> None:
    with pytest.raises(ValueError, match=NAMES[source]) as refusal:
        prepare(DataConfig("text", tmp_path / "shards", source), workers=1)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def webdataset(**members: bytes) -> bytes:
    return tarred({f"{i}.{kind}": data for i in range(3) for kind, data in members.items()})


COPIES: dict[str, tuple[dict[str, bytes], str]] = {
    "nothing": ({"README.md": b"x"}, "holds no data set"),
    "pickles alone": ({"train.pkl": pickle.dumps(3)}, "holds no data set"),
    "null": ({"train.jsonl": b'{"text": null}\n{"text": "a"}\n'}, "#0 has null in column 'text'"),
    "no JSON": ({"train.jsonl": b'{"text": "a"}\nno\n'}, "has a file that cannot be read"),
    "no parquet": ({"train.parquet": b"PAR1"}, "has a file that cannot be read"),
    "cut parquet": ({"train.parquet": parquet(text=["a"])[:-5]}, "has a file that cannot be read"),
    "no zip": ({"train.zip": b"PK"}, "has a file that cannot be read"),
    "Latin-1": ({"train.txt": b"caf\xe9\n" * 9}, "has a file that cannot be read .*utf-8"),
    "column": ({"train.jsonl": b'{"txt": "a"}\n'}, "has no column 'text'; its columns are txt"),
    "numbers": ({"train.jsonl": b'{"text": 3}\n'}, "has no text in column 'text' but .* type int"),
    "two kinds": ({"train.tar": webdataset(mp4=b"x") + b"\0"}, "no column 'text'|cannot be read"),
    "no number": ({"train.tar": webdataset(cls=b"x", txt=b"a")}, "has a file that cannot be read"),
    "no library": ({"train.tar": webdataset(cbor=b"x", txt=b"a")}, "has a file that cannot be"),
}


@pytest.mark.parametrize("case", COPIES)
def test_a_copy_that_cannot_be_read_is_one_sentence(
    tmp_path: Path, write: Write, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    files, message = COPIES[case]
    source = write(files)
    with pytest.raises(ValueError, match=message) as refusal:
        prepare(DataConfig("text", tmp_path / "shards", f"hub:{source}"), workers=1)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("shards*"))
    assert "rror" not in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("kind", ["pyd", "pickle", "pkl", "pth", "npz"])
def test_pickles_of_a_webdataset_are_never_opened(tmp_path: Path, write: Write, kind: str) -> None:
    mark = tmp_path / "opened"
    data = pickle.dumps(Harmful(mark))
    source = write({"train-0.tar": webdataset(**{kind: data, "txt": b"some text\n" * 20})})
    message = "it holds pickles, which are never opened"
    if kind not in ("pth", "npz"):
        message = f"no text in column '{kind}' but a value of type bytes"
    config = DataConfig("text", tmp_path / "shards", f"hub:{source}", column=kind)
    with pytest.raises(ValueError, match=message) as refusal:
        prepare(config, workers=1)
    assert "\n" not in str(refusal.value)
    assert not mark.exists()


@pytest.mark.parametrize("corpus", ["wikitext", "enwik8", "pg19", "audio"])
def test_a_benchmark_is_not_made_of_any_data_set(tmp_path: Path, write: Write, corpus: str) -> None:
    source = write({"train.jsonl": b'{"story": "a"}\n'})
    with pytest.raises(ValueError, match=r"column|holds no data set|not read from the hub"):
        prepare(DataConfig(corpus, tmp_path / "shards", f"hub:{source}"), workers=1)
    assert not list(tmp_path.glob("shards*"))
