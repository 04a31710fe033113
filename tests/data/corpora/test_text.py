"""The corpus text: formats, splits and the hub."""

import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data import records
from data.prepare import DataConfig, prepare
from data.shards import Shards

Write = Callable[[dict[str, bytes]], Path]


def build(tmp_path: Path, source: Path | str, **options: Any) -> Shards:
    return prepare(DataConfig("text", tmp_path / "shards", str(source), **options), workers=1)


def texts(shards: Shards) -> dict[str, bytes]:
    """Text of each document by name."""
    found = {}
    for name in shards.splits:
        split = shards.split(name)
        for document, title in zip(split.documents, split.names, strict=True):
            ids = split.tokens[document["offset"] : document["offset"] + document["tokens"]]
            found[title] = shards.vocabulary.decode(ids)
    return found


def parquet(path: Path, row_group_size: int | None = None, **columns: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pyarrow.table(columns)
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)


def test_every_format_is_read(tmp_path: Path, write: Write) -> None:
    rows = [{"text": "json ü\n"}, {"text": ""}]
    source = write(
        {
            "train/a.txt": b"plain\n",
            "train/b.txt.gz": gzip.compress(b"packed\n" * 9),
            "train/c.jsonl": "\n".join([*map(json.dumps, rows), "", ""]).encode(),
            "test/notes.md": b"not text",
        }
    )
    parquet(source / "test" / "d.parquet", text=["row 0", "row 1"], other=[1, 2])
    assert texts(build(tmp_path, source)) == {
        "train/a.txt": b"plain\n",
        "train/b.txt.gz": b"packed\n" * 9,
        "train/c.jsonl@0": "json ü\n".encode(),
        f"train/c.jsonl@{len(json.dumps(rows[0])) + 1}": b"",
        "test/d.parquet#0": b"row 0",
        "test/d.parquet#1": b"row 1",
    }


def test_records_of_many_parts_are_read_in_order(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data import documents

    monkeypatch.setattr(documents, "PART_BYTES", 100)
    rows = [f"row {i}\n" * (i % 5) for i in range(60)]
    source = write(
        {"train.jsonl": b"".join(json.dumps({"story": row}).encode() + b"\n" for row in rows)}
    )
    parquet(source / "validation.parquet", row_group_size=7, story=rows)
    shards = build(tmp_path, source, column="story")
    for split in shards.splits:
        assert shards.split(split).tokens.tobytes() == "".join(rows).encode()
        assert len(shards.split(split).documents) == 60
    names = shards.split("validation").names
    assert names == [f"validation.parquet#{i}" for i in range(60)]


def test_one_file_is_cut_90_5_5(tmp_path: Path, write: Write) -> None:
    text = b"0123456789" * 20
    shards = build(tmp_path, write({"book": text}) / "book")
    whole = b"".join(shards.split(split).tokens.tobytes() for split in shards.splits)
    assert whole == text
    assert [shards.split(split).bytes for split in shards.splits] == [180, 10, 10]


def test_a_glob_names_files_of_any_suffix(tmp_path: Path, write: Write) -> None:
    source = write({f"{name}.md": name.encode() for name in "abcdef"} | {"g.txt": b"no"})
    assert sorted(texts(build(tmp_path, f"{source}/*.md")).values()) == [
        b"%c" % c for c in b"abcdef"
    ]


def test_few_files_still_fill_every_split(tmp_path: Path, write: Write) -> None:
    shards = build(tmp_path, write({f"{i}.txt": b"text" for i in range(4)}))
    assert [len(shards.split(split).documents) for split in shards.splits] == [2, 1, 1]


def test_rows_without_split_go_by_the_hash_of_their_place(tmp_path: Path, write: Write) -> None:
    source = write({"a.jsonl": b"".join(b'{"text": "x"}\n' for _ in range(1000))})
    shards = build(tmp_path, source)
    sizes = [len(shards.split(split).documents) for split in shards.splits]
    assert sum(sizes) == 1000
    assert sizes[0] == pytest.approx(900, abs=40)


def test_a_local_copy_of_a_hub_data_set_is_streamed(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    for split, count in (("train", 3), ("test", 1)):
        for i in range(count):
            parquet(mirror / f"{split}-{i:05d}-of-{count:05d}.parquet", text=[f"{split} {i} é", ""])
    shards = build(tmp_path, f"hub:{mirror}")
    assert shards.split("train").tokens.tobytes() == "train 0 étrain 1 étrain 2 é".encode()
    assert shards.split("test").documents["bytes"].tolist() == [9, 0]
    for other in (f"hub:{mirror}:other", f"hub:{tmp_path / 'other'}"):
        with pytest.raises(ValueError, match="was not prepared from"):
            build(tmp_path, other)
    assert build(tmp_path, f"hub:{mirror}").hash == shards.hash
    with pytest.raises(ValueError, match="no column 'story'; its columns are text"):
        prepare(DataConfig("text", tmp_path / "x", f"hub:{mirror}", column="story"))


def test_the_hub_out_of_reach_names_the_local_alternative(tmp_path: Path) -> None:
    # Tests run with the hub switched off.
    with pytest.raises(ValueError, match=r"owner/name cannot be reached.*--source a file, folder"):
        build(tmp_path, "hub:owner/name")
    with pytest.raises(ValueError, match="hub:OWNER/NAME"):
        build(tmp_path, "hub")


def test_a_hub_data_set_with_a_script_is_explained(tmp_path: Path) -> None:
    folder = tmp_path / "scripted"
    folder.mkdir()
    (folder / "scripted.py").write_text("print('never run')")
    with pytest.raises(ValueError, match="needs a loading script"):
        build(tmp_path, f"hub:{folder}")


def test_a_stream_that_breaks_off_can_be_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    class NetworkError(Exception):
        pass

    class Stream:
        """Two files of ten rows, the second of which cannot be read to its end at first."""

        column_names = ("text",)
        num_shards = 2

        def __init__(self, index: int = 0, broken: bool = True) -> None:
            self.index, self.broken = index, broken

        def shard(self, num_shards: int, index: int) -> "Stream":
            assert num_shards == 2
            return Stream(index, self.broken)

        def __iter__(self) -> Iterator[dict[str, str]]:
            for number in range(10):
                if self.broken and self.index == 1 and number == 5:
                    raise NetworkError
                yield {"text": f"{self.index}.{number} "}

    def load(broken: bool) -> Callable[..., Any]:
        def load_dataset(*_: Any, split: str | None = None, **__: Any) -> Any:
            return Stream(broken=broken) if split else {s: Stream() for s in ("train", "test")}

        return load_dataset

    (tmp_path / "mirror").mkdir()
    source = f"hub:{tmp_path / 'mirror'}"
    monkeypatch.setattr(datasets, "load_dataset", load(broken=True))
    with pytest.raises(ConnectionError, match=r"broke off .*: call again, and the build continues"):
        build(tmp_path, source)
    assert list((tmp_path / "shards.building").rglob("000000.json"))
    monkeypatch.setattr(datasets, "load_dataset", load(broken=False))
    text = b"".join(b"%d.%d " % (i, j) for i in range(2) for j in range(10))
    assert build(tmp_path, source).split("train").tokens.tobytes() == text


def test_mistakes_in_records_are_named(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "RECORD_LIMIT", 1000)
    mistakes = {
        b'{"txt": "a"}\n': r"l, line 1 has no text in column 'text'; its columns are txt",
        b'{"text": "a"}\nword\n': r"train\.jsonl, line 2 is not a JSON object",
        b"[1]\n": r"train\.jsonl, line 1 is not a JSON object but a list",
        b'{"text": 3}\n': "has no text in column 'text'",
        b'{"text": "\\ud800"}\n': "not valid Unicode",
        b'{"text": "%s"}\n' % (b"a" * 2000): r"over 1,000 bytes: write long documents as \.txt",
    }
    for line, message in mistakes.items():
        source = write({"train.jsonl": line})
        with pytest.raises(ValueError, match=message):
            build(tmp_path, source)
    (source / "train.jsonl").unlink()
    parquet(source / "train.parquet", txt=["a"])
    with pytest.raises(
        ValueError, match=r"train\.parquet has no column 'text'; its columns are txt"
    ):
        build(tmp_path, source)
    (source / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(ValueError, match="is not a parquet file"):
        build(tmp_path, source)


def test_a_damaged_archive_is_named(tmp_path: Path, write: Write) -> None:
    packed = gzip.compress(b"text" * 1000)
    source = write({"a.txt.gz": packed[:-20], **{f"{i}.txt": b"x" for i in range(3)}})
    for given in (source, source / "a.txt.gz"):
        with pytest.raises(ValueError, match=r"a\.txt\.gz is damaged or cut short"):
            build(tmp_path, given)
