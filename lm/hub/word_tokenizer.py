"""The word vocabulary of WikiText as a tokenizer of transformers."""

from pathlib import Path
from typing import Any

from data.tokenizers.vocabulary import DESCRIPTION
from data.tokenizers.words import WORDS, WordVocabulary
from lm.hub.tokenization import VocabularyTokenizer


class WordTokenizer(VocabularyTokenizer):
    """Words between white space, and <eos> for the end of a line; unknown words become <unk>."""

    vocab_files_names = {"vocab_file": WORDS, "description_file": DESCRIPTION}  # noqa: RUF012

    def __init__(self, vocab_file: str, description_file: str, **kwargs: Any) -> None:
        self.vocab_file, self.description_file = vocab_file, description_file
        vocabulary = WordVocabulary.load(Path(vocab_file).parent)
        super().__init__(vocabulary, [word.decode() for word, _ in vocabulary.counts], **kwargs)
