"""The word tokenizer of WikiText as one of transformers."""

from pathlib import Path
from typing import Any

from data.tokenizers.tokenizer import DESCRIPTION
from data.tokenizers.words import EOS, WORDS, WordTokenizer
from lm.hub.tokenization import PAD, HubTokenizer


class HubWordTokenizer(HubTokenizer):
    """Words between white space, and <eos> for the end of a line; unknown words become <unk>.

    Words that are spelt like <eos> or <pad> are named with a space behind, which no word has.
    """

    vocab_files_names = {"vocab_file": WORDS, "description_file": DESCRIPTION}  # noqa: RUF012

    def __init__(self, vocab_file: str, description_file: str, **kwargs: Any) -> None:
        self.vocab_file, self.description_file = vocab_file, description_file
        vocabulary = WordTokenizer.load(Path(vocab_file).parent)
        names = [word.decode() for word, _ in vocabulary.counts]
        for number, name in enumerate(names):
            if name in (EOS.decode(), PAD) and number != vocabulary.start:
                names[number] = f"{name} "
        super().__init__(vocabulary, names, **kwargs)
