"""Tokenizers: exact round trips, bytes and words per token, hashes."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.common import integrity
from data.tokenizers.registry import (
    ByteTokenizer,
    MuLawTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    WordCounter,
    WordTokenizer,
    load_tokenizer,
)
from data.tokenizers.subwords import Method
from data.tokenizers.words import split_words
from tests.damage import flip, rewrite

TEXT = [
    f"the {word} of line {i} , and more" for i in range(300) for word in ("cat", "dog", "naïve")
]
METHODS: tuple[Method, ...] = ("unigram", "bpe")
# Any text, and text full of what SentencePiece treats specially.
ANY_TEXT = st.text() | st.text(alphabet="ab \t\r\n▁é<0xA>s\x00\u00a0", max_size=40)


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def subwords(request: pytest.FixtureRequest) -> SentencePieceTokenizer:
    return SentencePieceTokenizer.train(iter(TEXT), 300, request.param)


@pytest.fixture(scope="module")
def words() -> WordTokenizer:
    return WordTokenizer.build(Counter(split_words(b" a b a <unk> \n a c \n \n")))


@given(data=st.binary())
def test_bytes_round_trip(data: bytes) -> None:
    vocabulary = ByteTokenizer()
    ids = vocabulary.encode(data)
    assert vocabulary.decode(ids) == data
    assert vocabulary.token_bytes[ids].sum() == len(data)


@given(text=ANY_TEXT)
def test_subwords_round_trip_and_add_up(subwords: SentencePieceTokenizer, text: str) -> None:
    data = text.encode()
    ids = subwords.encode(data)
    assert ids.dtype == np.uint16
    assert subwords.decode(ids) == data
    assert subwords.token_bytes[ids].sum() == len(data)
    assert subwords.count_words(ids) == len(data.split())


@given(
    lines=st.lists(st.text(alphabet="ab \r▁é\x00", max_size=12), max_size=6), cut=st.integers(0, 6)
)
def test_cutting_between_lines_does_not_change_subwords(
    subwords: SentencePieceTokenizer, lines: list[str], cut: int
) -> None:
    data = [(line + "\n").encode() for line in lines]
    halves = subwords.encode(b"".join(data[:cut])), subwords.encode(b"".join(data[cut:]))
    assert np.concatenate(halves).tolist() == subwords.encode(b"".join(data)).tolist()


def test_line_ends_are_single_tokens(subwords: SentencePieceTokenizer) -> None:
    assert len(subwords.encode(b"\r\n\n\r\n")) == 3


@pytest.mark.parametrize("method", METHODS)
def test_indentation_is_not_a_token_a_space(method: Method) -> None:
    lines = [f"{' ' * depth}{text}" for depth in (4, 8) for text in TEXT]
    tokenizer = SentencePieceTokenizer.train(iter(lines), 300, method)
    ids, without = (tokenizer.encode(text) for text in (b"        the cat", b" the cat"))
    assert len(ids) <= len(without) + 2
    assert tokenizer.decode(ids) == b"        the cat"


@pytest.mark.parametrize("method", METHODS)
def test_spaces_of_a_vocabulary_that_has_none_come_back(method: Method) -> None:
    """SentencePiece itself would give its own mark of a space back."""
    lines = ["abcdefgh" * 3, "badcgh", "ghiabc"] * 9
    tokenizer = SentencePieceTokenizer.train(iter(lines), 272, method)
    text = " a b  ▁c \n".encode()
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_training_subwords_is_deterministic() -> None:
    first = SentencePieceTokenizer.train(iter(TEXT), 300, "unigram")
    second = SentencePieceTokenizer.train(iter(TEXT), 300, "unigram")
    assert first.hash == second.hash
    assert first.hash != SentencePieceTokenizer.train(iter(TEXT), 300, "bpe").hash


def test_text_without_line_ends_is_learnt_from_too() -> None:
    book = " ".join(f"{line} Å{number}" for number, line in enumerate(TEXT * 4))
    assert len(book.encode()) > 2 << 16
    assert b" more" in SentencePieceTokenizer.train(iter([book]), 300, "unigram").pieces


def test_a_vocabulary_too_large_or_small_for_the_text_is_refused() -> None:
    for text, size in ((TEXT, 5000), (map(chr, range(500, 800)), 270)):
        with pytest.raises(ValueError, match=rf"no {size} pieces can be learnt") as error:
            SentencePieceTokenizer.train(iter(text), size, "unigram")
        # Nothing of SentencePiece's own options, which nobody can set.
        assert "coverage" not in str(error.value)
        assert str(error.value).endswith("choose another vocabulary_size")


@pytest.mark.parametrize(
    ("text", "size", "message"),
    [
        ([], 270, "no text to learn pieces from: give it some"),
        (["a"], 270, "has 261 and vocabulary_size is at least 270: give more text"),
        (["   ", " \t "], 32_000, "give more text, or use the vocabulary bytes"),
        (TEXT, 10**6, r"no 1000000 pieces can be learnt from this text \(it has at most \d+\)"),
        ([*map(chr, range(500, 800))], 270, r"\(its characters alone need 560\)"),
    ],
)
def test_what_can_be_learnt_from_little_text_is_said(
    text: list[str], size: int, message: str
) -> None:
    for method in METHODS:
        with pytest.raises(ValueError, match=message):
            SentencePieceTokenizer.train(iter(text), size, method)


@pytest.mark.parametrize("text", [b"", b"one", b"no line end here", b" ", b"\n\n", "道可".encode()])
def test_any_text_makes_words(tmp_path: Path, text: bytes) -> None:
    vocabulary = WordTokenizer.build(Counter(split_words(text)))
    vocabulary.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.hash == vocabulary.hash
    ids = again.encode(text + b" another \n")
    assert again.decode(ids).split() == [*text.split(), b"<unk>"]
    assert again.pieces[again.start] == b" \n"


@given(
    lines=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1)), min_size=1
    )
)
def test_words_of_wikitext_form_round_trip_and_add_up(lines: list[list[str]]) -> None:
    lines = [[word for text in line for word in text.split()] for line in lines]
    lines = [[w for w in line if w.encode().split() == [w.encode()]] for line in lines]
    data = b"".join(b"".join(b" " + word.encode() for word in line) + b" \n" for line in lines)
    vocabulary = WordTokenizer.build(Counter(split_words(data)))
    ids = vocabulary.encode(data)
    assert vocabulary.decode(ids) == data
    assert len(ids) == len(data.split()) + len(lines)
    assert vocabulary.token_bytes[ids].sum() == len(data)
    assert vocabulary.count_words(ids) == len(data.split())


def test_words_are_ordered_by_frequency_then_bytes(words: WordTokenizer) -> None:
    assert [word for word, _ in words.counts] == [b"a", b"<eos>", b"<unk>", b"b", b"c"]
    assert words.start == 1
    assert words.encode(b" c z \n").tolist() == [4, 2, 1]


def test_a_literal_eos_is_a_word_and_not_a_line_end() -> None:
    vocabulary = WordTokenizer.build(Counter(split_words(b" <eos> a \n")))
    assert vocabulary.decode(vocabulary.encode(b" a <eos> \n")) == b" a <eos> \n"


def test_text_that_is_not_utf8_is_refused_where_characters_matter(
    subwords: SentencePieceTokenizer, words: WordTokenizer
) -> None:
    for vocabulary in (subwords, words):
        with pytest.raises(UnicodeDecodeError):
            vocabulary.encode(b"abc\xff\n")


def test_mulaw_levels_survive_and_grow_with_the_sample() -> None:
    vocabulary = MuLawTokenizer()
    levels = np.arange(256, dtype=np.uint8)
    assert vocabulary.encode(vocabulary.decode(levels)).tolist() == levels.tolist()
    samples = np.arange(-(2**15), 2**15)
    encoded = vocabulary.encode(samples.astype("<i2").tobytes())
    assert (np.diff(encoded.astype(int)) >= 0).all()
    assert encoded[2**15] == vocabulary.start
    decoded = np.frombuffer(vocabulary.decode(encoded), dtype="<i2").astype(float)
    # Half a step of the curve is a factor of 256 ** (1 / 255), seen from 1/255 of full scale
    # on the other side of zero.
    step = 256 ** (1 / 255) - 1
    assert (np.abs(decoded - samples) <= step * (np.abs(samples) + 2**15 / 255) + 1).all()
    assert vocabulary.token_bytes[encoded].sum() == 2 * len(samples)


@given(blocks=st.lists(st.binary(max_size=6)))
def test_words_are_counted_alike_wherever_text_is_cut(blocks: list[bytes]) -> None:
    counter = WordCounter()
    assert sum(counter.count(block) for block in blocks) == len(b"".join(blocks).split())


@given(data=st.text().map(str.encode), cut=st.integers(0, 50))
def test_words_of_ids_add_up_over_a_cut(
    subwords: SentencePieceTokenizer, data: bytes, cut: int
) -> None:
    ids = subwords.encode(data)
    before = subwords.decode(ids[:cut])
    after_space = not before or before[-1:].isspace()
    counted = subwords.count_words(ids[:cut]) + subwords.count_words(ids[cut:], after_space)
    assert counted == len(data.split())


def test_saving_and_loading_keeps_every_vocabulary(
    subwords: SentencePieceTokenizer, words: WordTokenizer, tmp_path: Path
) -> None:
    kinds: list[Callable[[], Tokenizer]] = [
        ByteTokenizer,
        MuLawTokenizer,
        lambda: subwords,
        lambda: words,
    ]
    for number, make in enumerate(kinds):
        folder = tmp_path / str(number)
        folder.mkdir()
        saved = make()
        saved.save(folder)
        loaded = load_tokenizer(folder)
        assert (loaded.hash, loaded.name, loaded.start) == (saved.hash, saved.name, saved.start)
        assert loaded.pieces == saved.pieces


def test_damaged_vocabularies_are_named(words: WordTokenizer, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no vocabulary"):
        load_tokenizer(tmp_path)
    words.save(tmp_path)
    (tmp_path / "words.tsv").write_bytes(b"other\t1\nx\t1\ny\t1\n")
    with pytest.raises(ValueError, match=r"words\.tsv has changed since it was written"):
        load_tokenizer(tmp_path)
    rewrite(tmp_path / "vocabulary.json", files={})
    with pytest.raises(ValueError, match="the vocabulary does not match its hash"):
        load_tokenizer(tmp_path)
    for content in (b"no tab\n", b"one\t1\n", b"", b"a\t-1\nb\t2\nc\t2\n", b"a\tx\n", b"a\t1\t2\n"):
        (tmp_path / "words.tsv").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged: prepare the shards again"):
            load_tokenizer(tmp_path)
    (tmp_path / "words.tsv").unlink()
    with pytest.raises(ValueError, match=r"words\.tsv is missing"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 3},
        {"kind": "other"},
        {"kind": None},
        {"hash": None},
        {"hash": "x"},
        {"eos": None},
        {"eos": "0"},
        {"eos": -1},
        {"eos": 10**6},
        {"unknown": None},
        {"unknown": 1.5},
        {"unknown": 10**6},
        {"files": []},
        {"files": {"words.tsv": "x"}},
        {"files": {"missing": "0" * 64}},
        {"more": 1},
    ],
)
def test_every_field_of_a_description_is_checked(
    words: WordTokenizer, change: dict[str, Any], tmp_path: Path
) -> None:
    words.save(tmp_path)
    rewrite(tmp_path / "vocabulary.json", **change)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        load_tokenizer(tmp_path)


def same_json(one: bytes, other: bytes) -> bool:
    """Whether only white space between the fields differs, which says nothing."""
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False


def test_a_flipped_bit_of_a_vocabulary_is_found(
    words: WordTokenizer, subwords: SentencePieceTokenizer, tmp_path: Path
) -> None:
    rng = random.Random(0)
    for vocabulary in (words, subwords, ByteTokenizer()):
        folder = tmp_path / vocabulary.kind
        folder.mkdir()
        vocabulary.save(folder)
        for file in folder.iterdir():
            for _ in range(20):
                whole = flip(file, rng.randrange(8 * file.stat().st_size))
                blank = file.suffix == ".json" and same_json(file.read_bytes(), whole)
                with nullcontext() if blank else pytest.raises(ValueError, match=folder.name):
                    load_tokenizer(folder)
                file.write_bytes(whole)


def test_a_vocabulary_without_hashes_is_read_and_that_is_said(
    words: WordTokenizer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(integrity, "_said", set())
    words.save(tmp_path)
    description = json.loads((tmp_path / "vocabulary.json").read_text())
    del description["sha256"], description["files"]
    (tmp_path / "vocabulary.json").write_text(json.dumps(description))
    assert load_tokenizer(tmp_path).pieces == words.pieces
    assert capsys.readouterr().err.count("is read unchecked") == 1
