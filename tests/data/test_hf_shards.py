"""Shards with a tokenizer that somebody has: prepared, described, refused."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.documents import Block, Document
from data.encode import whole_lines
from data.options import DataConfig
from data.prepare import prepare
from data.shards import open_shards
from data.stated import require_stated
from data.tokenizers.registry import HuggingFaceTokenizer
from tests.hub_tokenizers import LINES, write_tokenizer

TEXT = "".join(LINES)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer("llama3", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("texts")
    for number in range(12):
        (folder / f"{number}.txt").write_text(f"{number} <|end|> {TEXT[number * 500 :][:3000]}\n")
    return str(folder)


def config(folder: Path, texts: str, tokenizer: Path, **options: object) -> DataConfig:
    return DataConfig("text", folder / "s", texts, f"hf:{tokenizer}", **options)  # type: ignore[arg-type]


def test_shards_say_whose_tokens_they_are(tmp_path: Path, texts: str, tokenizer: Path) -> None:
    made = prepare(config(tmp_path, texts, tokenizer), workers=1)
    vocabulary = HuggingFaceTokenizer.read(tokenizer)
    facts = made.manifest.vocabulary
    assert (facts.kind, facts.size, facts.hash) == ("hf", vocabulary.size, vocabulary.hash)
    assert made.manifest.lossless == dict.fromkeys(made.splits, True)
    assert made.unit == "bits_per_byte"
    for name in made.splits:
        split = made.split(name)
        assert split.exact and vocabulary.token_bytes[split.tokens].sum() == split.bytes
    assert (made.path / "vocabulary" / "tokenizer_config.json").is_file()
    # The same again is there already; another tokenizer, or the shards' own kind alone, is not.
    assert prepare(config(tmp_path, texts, tokenizer)).hash == made.hash
    require_stated(config(tmp_path, texts, tokenizer), made)
    require_stated(DataConfig("text", made.path, vocabulary="hf"), made)
    other = write_tokenizer("gpt2", tmp_path / "other")
    with pytest.raises(ValueError, match="was prepared with other options"):
        prepare(config(tmp_path, texts, other))
    with pytest.raises(ValueError, match=r"was not prepared with data\.vocabulary hf:"):
        require_stated(config(tmp_path, texts, other), made)
    workers = prepare(config(tmp_path / "again", texts, tokenizer), workers=2)
    assert workers.hash == made.hash


def test_a_vocabulary_comes_from_shards_or_a_run(
    tmp_path: Path, texts: str, tokenizer: Path
) -> None:
    vocabulary = HuggingFaceTokenizer.read(tokenizer, 700)
    (tmp_path / "run" / "vocabulary").mkdir(parents=True)
    vocabulary.save(tmp_path / "run" / "vocabulary")
    made = prepare(DataConfig("text", tmp_path / "s", texts, vocabulary_from=tmp_path / "run"))
    assert made.manifest.vocabulary.hash == vocabulary.hash and made.vocabulary.size == 700
    assert open_shards(made.path).vocabulary.pieces == vocabulary.pieces


@pytest.mark.parametrize("corpus", ["text", "wikitext", "pg19"])
def test_bytes_of_another_run_are_taken_by_every_corpus(
    tmp_path: Path, texts: str, corpus: str
) -> None:
    """PG-19 and WikiText would choose subwords and words, which such a run cannot read."""
    of_bytes = prepare(DataConfig("text", tmp_path / "bytes", texts, "bytes"))
    config = DataConfig(corpus, tmp_path / "s", texts, vocabulary_from=of_bytes.path)
    assert config.kind == "bytes"
    if corpus == "text":
        assert prepare(config).manifest.vocabulary.hash == of_bytes.manifest.vocabulary.hash


def test_a_tokenizer_that_loses_text_leaves_scores_by_the_word(
    tmp_path: Path, texts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_tokenizer("wordpiece", tmp_path / "tokenizer")
    made = prepare(config(tmp_path, texts, folder), workers=1)
    assert made.unit == "word_perplexity"
    assert made.manifest.lossless == dict.fromkeys(made.splits, False)
    assert not made.split("test").exact
    said = " ".join(capsys.readouterr().err.split())
    assert "does not give the text of train and validation and test back (it cleans text" in said
    assert "there are no bits per byte" in said


@settings(deadline=None)
@given(
    cuts=st.lists(st.integers(0, 4000), max_size=12),
    kind=st.sampled_from(["gpt2", "llama3", "llama2", "unigram"]),
)
def test_documents_in_blocks_have_the_tokens_of_the_whole(
    cuts: list[int], kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if kind not in WHOLE:
        folder = write_tokenizer(kind, tmp_path_factory.mktemp(kind))
        vocabulary = HuggingFaceTokenizer.read(folder)
        WHOLE[kind] = vocabulary, vocabulary._ids(TEXT[:4000])
    vocabulary, whole = WHOLE[kind]
    data, document = TEXT[:4000].encode(), Document("train", "a")
    places = [0, *sorted(cuts), len(data)]
    pieces = (Block(document, data[a:b], not a) for a, b in itertools.pairwise(places))
    blocks = [block.data for block in whole_lines(pieces, vocabulary.cut)]
    assert b"".join(blocks) == data
    assert np.concatenate([vocabulary.encode(block) for block in blocks]).tolist() == whole


WHOLE: dict[str, tuple[HuggingFaceTokenizer, list[int]]] = {}


@pytest.mark.bad_input("data.prepare")
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"vocabulary": "hf:"}, "choose bytes or sentencepiece or words or hf:FOLDER"),
        ({"vocabulary": "hg:x"}, "cannot have the vocabulary hg:x"),
        ({"vocabulary": "hf"}, "names no tokenizer: give hf:FOLDER"),
        ({"vocabulary": "hf:/none"}, "/none does not exist: give a folder"),
        (
            {"vocabulary": "hf:a", "vocabulary_from": Path("b")},
            "no effect with the vocabulary hf:a",
        ),
        ({"vocabulary": "hf:a", "vocabulary_size": 500}, "no effect with the vocabulary hf"),
        ({"vocabulary_from": Path("none")}, "none holds no shards with a vocabulary"),
    ],
)
def test_vocabularies_that_cannot_be(
    options: dict[str, object], complaint: str, tmp_path: Path, texts: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        prepare(DataConfig("text", tmp_path / "s", texts, **options))  # type: ignore[arg-type]
    assert not (tmp_path / "s").exists()


def test_a_model_of_the_hub_gives_its_rows(tmp_path: Path, texts: str) -> None:
    folder = write_tokenizer("qwen", tmp_path / "model")
    (folder / "config.json").write_text(json.dumps({"vocab_size": 512}))
    made = prepare(config(tmp_path, texts, folder), workers=1)
    assert made.vocabulary.size == 512
