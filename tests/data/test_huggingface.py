"""Tokenizers of the Hugging Face hub as vocabularies: bytes of every token, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RustTokenizer

from data.tokenizers.huggingface import HuggingFaceTokenizer
from data.tokenizers.registry import load_tokenizer
from tests.hub_tokenizers import EXACT, LINES, write_tokenizer

NAMES = ["<0x0A>", "<s>", "</s>", "<unk>", "<|end|>", "<tool>"]
HOSTILE = st.text(max_size=60) | st.lists(
    st.sampled_from([*"ab e\n\r\t'▁é\u0301\x00\u00a0<>|", *NAMES]), max_size=40
).map("".join)
GAPPED = st.lists(
    st.sampled_from([*LINES[:9], "e", " ", "\n", "  \n", "x\n\n", "it's ", "!\n", "é"])
)


@pytest.fixture(scope="module", params=EXACT)
def exact(request: pytest.FixtureRequest, tmp_path_factory: Any) -> HuggingFaceTokenizer:
    folder = write_tokenizer(request.param, tmp_path_factory.mktemp(request.param))
    return HuggingFaceTokenizer.read(folder)


@settings(deadline=None)
@given(text=HOSTILE)
def test_hostile_text_comes_back_byte_by_byte(exact: HuggingFaceTokenizer, text: str) -> None:
    ids = exact.encode(text.encode())
    assert exact.decode(ids) == text.encode()
    assert exact.token_bytes[ids].sum() == len(text.encode())
    assert not exact.reasons


@settings(deadline=None)
@given(text=HOSTILE)
def test_no_text_becomes_a_special_token(exact: HuggingFaceTokenizer, text: str) -> None:
    special = set(exact.special.values())
    assert not special & set(exact.encode(text.encode()).tolist())


@settings(deadline=None)
@given(parts=GAPPED)
def test_texts_cut_at_gaps_encode_as_whole(exact: HuggingFaceTokenizer, parts: list[str]) -> None:
    text = "".join(parts).encode()
    cut = exact.cut(text)
    whole = exact.encode(text)
    assert exact.parts
    assert np.array_equal(
        whole, np.concatenate([exact.encode(text[:cut]), exact.encode(text[cut:])])
    )


def test_long_texts_are_cut_without_another_id(exact: HuggingFaceTokenizer) -> None:
    text = "".join(LINES * 8)
    assert len(text) > 1 << 16
    assert exact.encode(text.encode()).tolist() == exact._ids(text)


@pytest.mark.parametrize("kind", ["gpt2", "llama3", "qwen"])
def test_ids_are_those_of_the_tokenizer_itself(kind: str, tmp_path: Path) -> None:
    folder = write_tokenizer(kind, tmp_path)
    ours = HuggingFaceTokenizer.read(folder)
    theirs = RustTokenizer.from_file(str(folder / "tokenizer.json"))
    text = "".join(LINES[:20]) + " It's naïve.\r\n"
    assert ours.encode(text.encode()).tolist() == theirs.encode(text, add_special_tokens=False).ids
    marked = "<|start|>user\nhello<|end|>\n"
    ids = ours.encode_marked(marked).tolist()
    assert ids[0] == ours.special["bos"] == ours.start
    assert ours.special["eos"] in ids and ours.ends == (ours.special["eos"],)


def test_what_was_saved_is_loaded(exact: HuggingFaceTokenizer, tmp_path: Path) -> None:
    exact.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert isinstance(again, HuggingFaceTokenizer)
    assert (again.hash, again.pieces, again.start) == (exact.hash, exact.pieces, exact.start)
    assert (again.special, again.ends, again.files) == (exact.special, exact.ends, exact.files)
    worker = pickle.loads(pickle.dumps(exact))
    text = "".join(LINES[:5]).encode()
    assert np.array_equal(worker.encode(text), exact.encode(text))


def test_rows_of_the_model_without_a_token_have_no_bytes(tmp_path: Path) -> None:
    folder = write_tokenizer("gpt2", tmp_path / "there")
    own = HuggingFaceTokenizer.read(folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": 640, "eos_token_id": [1, 2]}))
    padded = HuggingFaceTokenizer.read(folder)
    assert padded.size == 640 > own.size and padded.hash == own.hash
    assert padded.pieces[own.size :] == [b""] * (640 - own.size)
    assert {1, 2} < set(padded.ends)
    padded.save(tmp_path)
    assert load_tokenizer(tmp_path).size == 640


def test_a_tokenizer_that_loses_text_says_why(tmp_path: Path) -> None:
    vocabulary = HuggingFaceTokenizer.read(write_tokenizer("wordpiece", tmp_path))
    assert "lower case" in vocabulary.reasons[0]
    assert "it drops white space" in vocabulary.reasons
    assert vocabulary.decode(vocabulary.encode(b"The  Cat")) == b" the cat"


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "holds no tokenizer: tokenizer.json is missing"),
        ({"tokenizer.model": "x"}, "has a slow tokenizer alone"),
        ({"tokenizer.json": "{"}, "is no JSON"),
        ({"tokenizer.json": "[]"}, "is no JSON object"),
        ({"tokenizer.json": '{"model": {"vocab": {}}}'}, "cannot be used"),
        ({"tokenizer.json": '{"added_tokens": [{}]}'}, "is damaged"),
    ],
)
def test_folders_without_a_tokenizer(files: dict[str, str], complaint: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=complaint):
        HuggingFaceTokenizer.read(tmp_path)


def test_a_tokenizer_larger_than_its_model(tmp_path: Path) -> None:
    folder = write_tokenizer("gpt2", tmp_path)
    with pytest.raises(ValueError, match=r"has 424 tokens and the model 100: give"):
        HuggingFaceTokenizer.read(folder, 100)


def test_names_that_are_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("GGUF")
    with pytest.raises(ValueError, match="is a file: give the folder"):
        HuggingFaceTokenizer.read(tmp_path / "model.gguf")
    with pytest.raises(ValueError, match="does not exist"):
        HuggingFaceTokenizer.read(tmp_path / "none")
    with pytest.raises(ValueError, match="cannot be fetched from the Hugging Face hub"):
        HuggingFaceTokenizer.read("nobody/nothing")
