"""Cuts into train, validation and test: at lines, never inside a character, and no split empty."""

import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import documents
from data.documents import SPLITS, Block, Document, Part, Source
from data.prepare import DataConfig, prepare
from data.shards import Shards
from data.splits import cut_text, with_all_splits

Write = Callable[[dict[str, bytes]], Path]
RUSSIAN = "Все счастливые семьи похожи друг на друга."  # noqa: RUF001
CHINESE = "道可道非常道名可名非常名無名天地之始有名萬物之母"


def cut(text: bytes, exact: bool = False) -> list[bytes]:
    bounds = cut_text(lambda start, end: text[start:end], len(text), exact)
    assert [split for split in SPLITS if split in bounds] == list(bounds)
    return [text[start:end] for start, end in bounds.values()]


@given(text=st.text(min_size=3, max_size=400), exact=st.booleans())
def test_cuts_lie_between_characters_and_leave_no_split_empty(text: str, exact: bool) -> None:
    pieces = cut(text.encode(), exact)
    assert "".join(piece.decode() for piece in pieces) == text
    assert len(pieces) == 3
    assert all(pieces)


@given(text=st.binary(max_size=200))
def test_cuts_of_anything_lose_nothing(text: bytes) -> None:
    assert b"".join(cut(text)) == text


@pytest.mark.parametrize("count", [10, 20, 37, 500])
def test_cuts_go_to_lines_and_else_to_words(count: int) -> None:
    lines = [f"{number} {RUSSIAN * (number % 3)}\n".encode() for number in range(count)]
    train, validation, test = cut(b"".join(lines))
    assert train.endswith(b"\n") and validation.endswith(b"\n") and test
    if count == 500:
        assert len(validation) == pytest.approx(len(b"".join(lines)) * 0.05, rel=0.05)
    train, validation, test = cut(b" ".join(line.strip() for line in lines))
    assert train.endswith(b" ") and validation.endswith(b" ") and test


def test_a_cut_does_not_go_far_for_a_line() -> None:
    sizes = [len(piece) for piece in cut(b"a\n" * 10 + b"x" * 1000 + b"\n")]
    assert sizes[0] == pytest.approx(920, abs=2) and sizes[1] == pytest.approx(51, abs=2)


def build(tmp_path: Path, source: Path | str, kind: str = "bytes") -> Shards:
    options: dict[str, Any] = {"vocabulary_size": 310} if kind == "sentencepiece" else {}
    return prepare(DataConfig("text", tmp_path / "s", str(source), kind, **options), workers=1)


@pytest.mark.parametrize(
    ("kind", "line_end"),
    [*(("words", end) for end in ("\n", "\r\n", " ", "")), ("sentencepiece", "")],
)
@pytest.mark.parametrize("text", [RUSSIAN, CHINESE])
def test_a_single_file_of_any_script_has_every_vocabulary(
    tmp_path: Path, write: Write, text: str, line_end: str, kind: str
) -> None:
    draw = random.Random(0)
    lines = ("".join(draw.choices(text, k=40)) + line_end for _ in range(101))
    whole = "".join(lines).encode()
    source = write({"book.txt": whole, "packed.txt.gz": gzip.compress(whole)})
    for name in ("book.txt", "packed.txt.gz"):
        shards = build(tmp_path / name, source / name, kind)
        assert shards.splits == list(SPLITS)
        assert sum(shards.split(split).bytes for split in SPLITS) == len(whole)


def parquet(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path)


def write_records(folder: Path, how: str, texts: list[str]) -> str:
    """Records in a form that data.prepare reads; returns the source."""
    folder.mkdir(parents=True, exist_ok=True)
    if how == "hub":
        parquet(folder / "train-00000-of-00001.parquet", texts)
        return f"hub:{folder}"
    if how == "parquet":
        parquet(folder / "a.parquet", texts)
    elif how == "files":
        for number, text in enumerate(texts):
            (folder / f"{number}.txt").write_text(text)
    else:
        lines = [json.dumps({"text": text}) + "\n" for text in texts]
        half = len(lines) // 2 if how == "two files" else 0
        (folder / "a.jsonl").write_text("".join(lines[half:]))
        if half:
            (folder / "b.jsonl").write_text("".join(lines[:half]))
    return str(folder)


@pytest.mark.parametrize("how", ["json", "two files", "parquet", "hub", "files"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 40])
def test_few_records_fill_every_split(tmp_path: Path, how: str, count: int) -> None:
    texts = [f"{number}. {RUSSIAN}\n" * 4 for number in range(count)]
    shards = build(tmp_path, write_records(tmp_path / "source", how, ["", " \n", *texts]))
    assert shards.splits == list(SPLITS)
    held = {
        split: shards.vocabulary.decode(shards.split(split).tokens).decode() for split in SPLITS
    }
    assert all(text.strip() for text in held.values())
    # Nothing is lost or twice there, and three documents or more stay whole.
    assert sum(map(len, held.values())) == sum(map(len, ["", " \n", *texts]))
    if count >= 3:
        assert all(any(text in whole for whole in held.values()) for text in texts)


def test_records_that_fill_every_split_are_where_they_were(tmp_path: Path) -> None:
    source = write_records(tmp_path / "source", "json", [f"{i} {RUSSIAN}" for i in range(200)])
    shards = build(tmp_path, source)
    # The hash of these shards before empty splits were looked for.
    assert shards.hash.startswith("edf1fe8ea4827d1456ffea0a")


@pytest.mark.parametrize("how", ["json", "parquet", "hub"])
@pytest.mark.parametrize("text", ["a", "ab", "道"])
def test_too_little_text_is_refused_and_leaves_nothing(tmp_path: Path, how: str, text: str) -> None:
    source = write_records(tmp_path / "source", how, [text])
    with pytest.raises(ValueError, match="too little text for train, validation and test"):
        build(tmp_path / "out", source)
    assert not list((tmp_path / "out").iterdir())


def test_a_tiny_file_is_refused_and_leaves_nothing(tmp_path: Path, write: Write) -> None:
    source = write({"a.txt": b"ab"})
    with pytest.raises(ValueError, match=r"a\.txt hold too little text"):
        build(tmp_path / "out", source / "a.txt")
    assert not list((tmp_path / "out").iterdir())


def test_a_document_over_several_parts_is_cut_where_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", 100)
    text = "".join(f"{number} {RUSSIAN}\n" for number in range(40))
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text(text)
    (tmp_path / "source" / "b.jsonl").write_text(json.dumps({"text": ""}))
    shards = build(tmp_path, tmp_path / "source")
    joined = b"".join(shards.vocabulary.decode(shards.split(split).tokens) for split in SPLITS)
    assert joined == text.encode()
    names = [shards.split(split).names[0] for split in SPLITS]
    edges = [re.findall(r"\d+", name) for name in names]
    assert edges[0][0] == "0" and edges[2][1] == str(len(text.encode()))
    assert edges[0][1] == edges[1][0] and edges[1][1] == edges[2][0]


class Endless(Part):
    """A part that must not be read to its end only to see that splits have text."""

    size = None

    def read(self) -> Iterator[Block]:
        for split in (*SPLITS, "train"):
            yield Block(Document(split, split), b"text", True)
        raise AssertionError("read on")


def test_looking_for_text_ends_with_the_last_split() -> None:
    source = Source("text", "bits_per_byte", (Endless(),), drawn=True)
    assert with_all_splits(source) is source
