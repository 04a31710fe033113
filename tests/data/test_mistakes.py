"""Mistakes in what data.prepare is given: one sentence each, and nothing is left behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import encode
from data.prepare import DataConfig, prepare

Write = Callable[[dict[str, bytes]], Path]

MISTAKES: dict[str, tuple[dict[str, bytes], dict[str, Any], str]] = {
    "missing": ({}, {"corpus": "text", "source": "nowhere"}, "is not there"),
    "no source": ({}, {"corpus": "text", "source": None}, "needs a source"),
    "empty": ({"train/a.txt": b"", "test/b.txt": b""}, {"corpus": "text"}, "holds no text"),
    "no text": ({"a.pdf": b"x"}, {"corpus": "text"}, "holds no text"),
    "not UTF-8": (
        {"train/a.txt": b"ab\n\xff"},
        {"corpus": "text", "vocabulary": "words"},
        r"a\.txt, line 2 is not valid UTF-8",
    ),
    "not UTF-8, before a vocabulary is learnt": (
        {"train/a.txt": b"ab\n" * 400_000 + b"\xff"},
        {"corpus": "text", "vocabulary": "sentencepiece"},
        r"a\.txt, line 400,001 is not valid UTF-8",
    ),
    "no source of a benchmark": (
        {},
        {"corpus": "pg19", "source": None},
        r"needs a source: give --source, a folder with train/ID\.txt",
    ),
    "stray": ({"train/a.txt": b"x", "b.txt": b"x"}, {"corpus": "text"}, "in none of the splits"),
    "too little text": (
        {"train/a.txt": b"ab"},
        {"corpus": "text", "vocabulary": "sentencepiece"},
        "vocabulary_size",
    ),
}


@pytest.mark.parametrize(("texts", "options", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_sentence_and_leave_nothing(
    tmp_path: Path, write: Write, texts: dict[str, bytes], options: dict[str, Any], message: str
) -> None:
    source = write(texts)
    options = {"source": str(source)} | options
    with pytest.raises(ValueError, match=message) as error:
        prepare(DataConfig(shards=tmp_path / "out" / "s", **options), workers=1)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "out").iterdir())


def test_a_line_longer_than_memory_is_refused_unless_bytes(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "LINE_LIMIT", 1 << 20)
    source = write({"train/a.txt": b"ab " * (1 << 19)})
    with pytest.raises(ValueError, match=r"a\.txt has a line of over 1 MiB"):
        prepare(DataConfig("text", tmp_path / "w", str(source), "words"), workers=1)
    shards = prepare(DataConfig("text", tmp_path / "b", str(source)), workers=1)
    assert np.array_equal(shards.split("train").tokens[:6], list(b"ab ab "))
    assert shards.split("train").words == 1 << 19
