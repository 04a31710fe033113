"""What a config says of shards that are there: contradictions are found before training."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data.options import DataConfig
from data.prepare import prepare
from data.shards import Shards
from data.stated import require_stated
from lm import train
from lm.runs.run_config import RunConfig, RunFolder

TEXT = b" a few words of no great length \n" * 200


def build(folder: Path, *arguments: Any, **options: Any) -> Shards:
    (folder / "source").mkdir(parents=True, exist_ok=True)
    (folder / "source" / "a.txt").write_bytes(TEXT)
    source = str(folder / "source" / "a.txt")
    return prepare(DataConfig(arguments[0], folder / "s", source, *arguments[1:], **options), 1)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shards]:
    folder = tmp_path_factory.mktemp("built")
    other = folder / "other"
    shards = {
        "bytes": build(folder / "bytes", "text"),
        "words": build(folder / "words", "text", "words"),
        "subwords": build(folder / "sub", "text", "sentencepiece", vocabulary_size=274),
        "enwik8": build(folder / "enwik8", "enwik8", prefix=True),
    }
    other.mkdir()
    (other / "b.txt").write_bytes(TEXT)
    return shards


CONTRADICTIONS = {
    "corpus": ("bytes", {"corpus": "pg19"}, "the corpus text, not data.corpus pg19"),
    "corpus of another": ("enwik8", {"corpus": "text"}, "the corpus enwik8, not data.corpus"),
    "vocabulary": ("bytes", {"vocabulary": "words"}, "the vocabulary bytes, not data.vocabulary"),
    "vocabulary other way": ("words", {"vocabulary": "bytes"}, "vocabulary words, not"),
    "size": (
        "subwords",
        {"vocabulary": "sentencepiece", "vocabulary_size": 300},
        "the vocabulary_size 274, not data.vocabulary_size 300",
    ),
    "sample": ("subwords", {"vocabulary": "sentencepiece", "vocabulary_sample": 5000}, "sample"),
    "method": ("subwords", {"vocabulary": "sentencepiece", "vocabulary_method": "bpe"}, "unigram"),
    "column": ("bytes", {"column": "story"}, "the column text, not data.column story"),
    "hub": ("bytes", {"source": "hub:owner/name"}, "not prepared with data.source hub:owner/name"),
    "source": ("bytes", {"source": "OTHER"}, "was not prepared with data.source"),
    "vocabulary_from": (
        "words",
        {"vocabulary": "words", "vocabulary_from": "bytes"},
        "was not prepared with data.vocabulary_from",
    ),
}


def config_of(built: dict[str, Shards], name: str, said: dict[str, Any]) -> DataConfig:
    shards = built[name]
    corpus = str(shards.manifest.options["corpus"])
    values = {"corpus": corpus, "shards": shards.path} | said
    if values.get("source") == "OTHER":
        values["source"] = str(shards.path.parents[1] / "other" / "b.txt")
    if "vocabulary_from" in values:
        values["vocabulary_from"] = built[values["vocabulary_from"]].path
    return DataConfig(**values)


@pytest.mark.parametrize(("name", "said", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_training_refuses_what_is_not_so_before_anything_is_written(
    built: dict[str, Shards],
    run_config: RunConfig,
    tmp_path: Path,
    name: str,
    said: dict[str, Any],
    message: str,
) -> None:
    config = replace(run_config, data=config_of(built, name, said))
    sections = {section: getattr(config, section) for section in SECTIONS}
    with pytest.raises(ValueError, match=message) as error:
        train.main(RunFolder(tmp_path / "run"), **sections)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


SECTIONS = ("data", "model", "optim", "training", "report", "sparse", "power")

SO: list[tuple[str, dict[str, Any]]] = [
    ("bytes", {}),
    ("words", {}),
    ("bytes", {"vocabulary": "bytes", "column": "text"}),
    ("subwords", {"vocabulary": "sentencepiece", "vocabulary_size": 274}),
    ("subwords", {"vocabulary": "sentencepiece", "vocabulary_method": "unigram"}),
    ("enwik8", {"prefix": True}),
    ("enwik8", {}),
    ("bytes", {"source": "nowhere any more"}),
    ("words", {"vocabulary": "words", "vocabulary_from": "words"}),
]


@pytest.mark.parametrize(("name", "said"), SO)
def test_what_is_so_or_left_out_is_fine(
    built: dict[str, Shards], name: str, said: dict[str, Any]
) -> None:
    require_stated(config_of(built, name, said), built[name])


def test_a_source_that_has_changed_since_is_still_the_source(
    built: dict[str, Shards], write: Callable[[dict[str, bytes]], Path]
) -> None:
    source = write({"a.txt": b"changed"})
    said = {"source": str(source / "a.txt")}
    require_stated(config_of(built, "bytes", said), built["bytes"])
