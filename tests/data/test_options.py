"""DataConfig: options without effect are refused, whatever the combination."""

from pathlib import Path
from typing import Any

import pytest

from data.options import DataConfig
from data.splits import assign_splits, fractions, hashed_split, named_split


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corpus": "pg-19"}, "did you mean pg19"),
        ({"corpus": "text", "prefix": True}, "prefix has no effect with corpus text"),
        ({"corpus": "pg19", "column": "a"}, "column has no effect with corpus pg19"),
        ({"corpus": "text", "checksums": Path("a")}, "checksums has no effect"),
        ({"corpus": "pystdlib", "source": "a"}, "source has no effect with corpus pystdlib"),
        ({"corpus": "enwik8", "vocabulary": "words"}, "choose bytes or sentencepiece"),
        ({"corpus": "audio", "vocabulary": "bytes"}, "choose mulaw"),
        ({"corpus": "enwik8", "vocabulary_size": 500}, "no effect with the vocabulary bytes"),
        (
            {"corpus": "pg19", "vocabulary": "bytes", "vocabulary_from": Path("a")},
            "vocabulary_from has no effect with the vocabulary bytes",
        ),
        ({"corpus": "audio", "vocabulary_from": Path("a")}, "no effect with the vocabulary mulaw"),
        (
            {"corpus": "pg19", "vocabulary_from": Path("a"), "vocabulary_method": "bpe"},
            "vocabulary_method has no effect with vocabulary_from",
        ),
        ({"corpus": "pg19", "vocabulary_size": 3}, "vocabulary_size must be at least"),
        ({"corpus": "pg19", "vocabulary_sample": 3}, "vocabulary_sample must be at least"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(shards=Path("s"), **options)


def test_corpora_choose_their_vocabulary() -> None:
    kinds = {c: DataConfig(c, Path("s")).kind for c in ("enwik8", "wikitext", "pg19", "audio")}
    assert kinds == {
        "enwik8": "bytes",
        "wikitext": "words",
        "pg19": "sentencepiece",
        "audio": "mulaw",
    }


def test_places_do_not_decide_what_shards_hold() -> None:
    first = DataConfig("pg19", Path("a"), "here", checksums=Path("x"))
    assert first.content() == DataConfig("pg19", Path("b"), "there").content()
    assert first.content() != DataConfig("pg19", Path("a"), vocabulary_size=500).content()


def test_paths_name_splits() -> None:
    names = {
        "train/a.txt": "train",
        "valid.txt": "validation",
        "data/val-0.parquet": "validation",
        "test_1.jsonl": "test",
        "training/a.txt": None,
        "a/latest.txt": None,
    }
    assert {name: named_split(name) for name in names} == names


def test_hashes_of_names_are_stable_and_about_90_5_5() -> None:
    assert [hashed_split(f"{i}.txt") for i in range(3)] == ["test", "train", "train"]
    counts = [hashed_split(f"document {i}") for i in range(20_000)]
    assert counts.count("train") == pytest.approx(18_000, abs=150)
    assert counts.count("test") == pytest.approx(1000, abs=120)


@pytest.mark.parametrize("count", [3, 4, 10, 300])
def test_no_split_is_empty(count: int) -> None:
    splits = assign_splits([f"{i}.txt" for i in range(count)])
    assert set(splits) == {"train", "validation", "test"}
    assert splits.count("train") >= count * 0.8 - 2


@pytest.mark.parametrize("total", [0, 1, 19, 20, 4_150_000])
def test_fractions_cover_everything_in_order(total: int) -> None:
    bounds = list(fractions(total).values())
    flat = [edge for bound in bounds for edge in bound]
    assert flat == sorted(flat)
    assert sum(end - start for start, end in bounds) == total
