"""The word tokenizer of WikiText as one of transformers."""

from pathlib import Path
from typing import Any

from data.tokenizers.tokenizer import DESCRIPTION
from data.tokenizers.words import WORDS, WordTokenizer
from lm.hub.tokenization import HubTokenizer


class HubWordTokenizer(HubTokenizer):
    """Words between white space, and <eos> for the end of a line; unknown words become <unk>."""

    vocab_files_names = {"vocab_file": WORDS, "description_file": DESCRIPTION}  # noqa: RUF012

    def __init__(self, vocab_file: str, description_file: str, **kwargs: Any) -> None:
        self.vocab_file, self.description_file = vocab_file, description_file
        vocabulary = WordTokenizer.load(Path(vocab_file).parent)
        super().__init__(vocabulary, [word.decode() for word, _ in vocabulary.counts], **kwargs)
