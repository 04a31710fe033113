"""Documents that are there twice: found in every corpus, told, left out of training if asked."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data import documents
from data import duplicates as program
from data.options import DataConfig
from data.prepare import prepare
from data.shards import Shards

Write = Callable[[dict[str, bytes]], Path]


def text(number: int, lines: int = 3) -> str:
    draw = random.Random(number)
    words = ("time", "and", "a", "naïve", "house")
    return "".join(" " + " ".join(draw.choices(words, k=9)) + " \n" for _ in range(lines))


# By number of its text: each document of training and held out. Of those of training 1 and 2 are
# held out (2 twice in training), 3 is there three times.
TRAIN = [1, 2, 2, 3, 3, 3, 4, 5]
VALIDATION, TEST = [1, 6, 6], [2, 1, 7]
SPLITS = {"train": TRAIN, "validation": VALIDATION, "test": TEST}


def write_corpus(corpus: str, how: str, folder: Path) -> str:
    """Write the texts in some form; returns the source."""
    folder.mkdir()
    for split, numbers in SPLITS.items():
        if how == "files":
            (folder / split).mkdir()
            for place, number in enumerate(numbers):
                (folder / split / f"{place}.txt").write_text(text(number))
        elif how == "json":
            lines = [json.dumps({"text": text(number)}) + "\n" for number in numbers]
            (folder / f"{split}.jsonl").write_text("".join([*lines, '{"text": ""}\n']))
        elif how == "tokens":
            articles = (f" \n = {text(n, 1).strip()} = \n \n{text(n)}" for n in numbers)
            name = {"validation": "valid"}.get(split, split)
            (folder / f"wiki.{name}.tokens").write_text("".join(articles))
        else:
            table = pyarrow.table({"text": [text(number) for number in numbers]})
            pyarrow.parquet.write_table(table, folder / f"{split}-00000-of-00001.parquet")
    return f"hub:{folder}" if how == "hub" else str(folder)


FORMS = [
    ("text", "files", "bytes"),
    ("text", "files", "words"),
    ("text", "json", "sentencepiece"),
    ("text", "parquet", "bytes"),
    ("text", "hub", "bytes"),
    ("wikitext", "tokens", "words"),
    ("pg19", "files", "bytes"),
]


def build(folder: Path, corpus: str, source: str, kind: Any, **options: Any) -> Shards:
    if kind == "sentencepiece":
        options["vocabulary_size"] = 275
    return prepare(DataConfig(corpus, folder, source, kind, **options), workers=1)


@pytest.mark.parametrize(("corpus", "how", "kind"), FORMS)
def test_every_corpus_says_what_is_there_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus: str, how: str, kind: str
) -> None:
    source = write_corpus(corpus, how, tmp_path / "source")
    shards = build(tmp_path / "s", corpus, source, kind)
    found = shards.manifest.duplicates
    assert found is not None
    assert (found.held_out, found.repeated, found.dropped) == (3, 3, 0)
    names = {split: shards.split(split).names for split in shards.splits}
    for name, twin in found.examples:
        assert name in names["train"] and twin in names["validation"] + names["test"]
    said = capsys.readouterr().err
    assert "3 documents of training are also in validation or test, such as " in said
    assert "--drop-duplicates" in said
    assert "3 documents of training repeat another one of training" in said


@pytest.mark.parametrize(("corpus", "how", "kind"), FORMS)
def test_what_is_held_out_is_left_out_of_training_if_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], corpus: str, how: str, kind: str
) -> None:
    source = write_corpus(corpus, how, tmp_path / "source")
    whole = build(tmp_path / "whole", corpus, source, kind)
    capsys.readouterr()
    shards = build(tmp_path / "s", corpus, source, kind, drop_duplicates=True)
    found = shards.manifest.duplicates
    assert found is not None
    assert (found.held_out, found.repeated, found.dropped) == (0, 2, 3)
    assert len(found.examples) == 3
    said = capsys.readouterr().err
    assert "3 documents that are also held out were left out of training" in said
    assert "are also in" not in said.replace("that are also held out", "")
    # Held-out text is never touched, and what is left is what it was.
    for split in ("validation", "test"):
        assert shards.split(split).names == whole.split(split).names
        assert shards.split(split).bytes == whole.split(split).bytes
    left = [i for i, number in enumerate(TRAIN) if number > 2]
    every = whole.split("train").names
    # What is empty is no duplicate.
    names = [every[i] for i in left] + every[len(TRAIN) :]
    assert shards.split("train").names == names
    assert shards.hash != whole.hash
    # The option is a fact of the shards.
    with pytest.raises(ValueError, match="prepared with other options"):
        build(tmp_path / "s", corpus, source, kind)
    assert build(tmp_path / "s", corpus, source, kind, drop_duplicates=True).hash == shards.hash


def test_a_vocabulary_is_not_made_of_what_is_left_out(tmp_path: Path, write: Write) -> None:
    source = write(
        {"train/a.txt": b" held out \n", "train/b.txt": b" x \n", "test/c.txt": b" held out \n"}
    )
    words = {}
    for drop in (False, True):
        folder = tmp_path / str(drop)
        shards = build(folder, "text", str(source), "words", drop_duplicates=drop)
        words[drop] = b" held" in shards.vocabulary.pieces
    assert words == {False: True, True: False}


@pytest.mark.parametrize("drop", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "words"])
def test_documents_over_many_parts_are_compared_as_a_whole(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, kind: str, drop: bool
) -> None:
    long, other = text(1, 60).encode(), text(2, 60).encode()
    # As long as the first, and the same but for a word.
    alike = long.replace(b"time", b"TIME", 1)
    texts = {"train/a": long, "train/b": other, "train/c": alike, "train/d": b"short \n"}
    held = {"test/a": b"x \n" + other, "test/b": b"y \n", "test/c": long}
    source = write({f"{name}.txt": text for name, text in {**texts, **held}.items()})
    hashes = set()
    for number, (part, block, workers) in enumerate(
        [(1 << 20, 1 << 20, 1), (300, 100, 1), (77, 13, 2)]
    ):
        monkeypatch.setattr(documents, "PART_BYTES", part)
        monkeypatch.setattr(documents, "BLOCK_BYTES", block)
        folder = tmp_path / str(number)
        config = DataConfig("text", folder, str(source), kind, drop_duplicates=drop)
        shards = prepare(config, workers)
        hashes.add(shards.hash)
        found = shards.manifest.duplicates
        assert found is not None
        assert (found.held_out, found.dropped) == ((0, 1) if drop else (1, 0))
        assert found.examples == [["train/a.txt", "test/c.txt"]]
        names = ["train/b.txt", "train/c.txt", "train/d.txt"]
        assert shards.split("train").names == (names if drop else ["train/a.txt", *names])
    assert len(hashes) == 1


def test_only_documents_of_one_length_are_read_again(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "PART_BYTES", 100)
    monkeypatch.setattr(program, "digest_over_parts", None)
    source = write({f"{split}/a.txt": text(1, 20 + n).encode() for n, split in enumerate(SPLITS)})
    prepare(DataConfig("text", tmp_path / "s", str(source)), workers=1)


def test_training_that_is_all_held_out_is_refused(tmp_path: Path, write: Write) -> None:
    source = write({"train/a.txt": b"a text", "train/b.txt": b"", "test/c.txt": b"a text"})
    with pytest.raises(ValueError, match="every document of training is also in validation"):
        build(tmp_path / "out" / "s", "text", str(source), "bytes", drop_duplicates=True)
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_build_does_not_look_again(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from data import prepare as building

    source = write_corpus("text", "files", tmp_path / "source")
    whole = building.build_tokenizer

    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(building, "build_tokenizer", stop)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path / "s", "text", source, "words", drop_duplicates=True)
    monkeypatch.setattr(building, "build_tokenizer", whole)
    monkeypatch.setattr(program, "look_at", stop)
    shards = build(tmp_path / "s", "text", source, "words", drop_duplicates=True)
    monkeypatch.undo()
    again = build(tmp_path / "again", "text", source, "words", drop_duplicates=True)
    assert again.hash == shards.hash


def test_data_sets_of_the_hub_have_the_hash_of_their_texts(tmp_path: Path) -> None:
    hashes = []
    for name in ("a", "b"):
        source = write_corpus("text", "hub", tmp_path / name)
        hashes.append(build(tmp_path / f"s{name}", "text", source, "bytes").manifest.source.sha256)
    table = pyarrow.table({"text": ["other"]})
    pyarrow.parquet.write_table(table, tmp_path / "b" / "test-00000-of-00001.parquet")
    source = f"hub:{tmp_path / 'b'}"
    hashes.append(build(tmp_path / "other", "text", source, "bytes").manifest.source.sha256)
    assert hashes[0] == hashes[1] != hashes[2]
