"""The SentencePiece vocabulary as a tokenizer of transformers."""

from pathlib import Path
from typing import Any

from data.tokenizers.subwords import MODEL, SubwordVocabulary
from lm.hub.tokenization import VocabularyTokenizer


class SubwordTokenizer(VocabularyTokenizer):
    """SentencePiece's own segmentation, with an exact way back to the text."""

    vocab_files_names = {"vocab_file": MODEL}  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        vocabulary = SubwordVocabulary.load(Path(vocab_file).parent)
        super().__init__(vocabulary, vocabulary.names, **kwargs)
