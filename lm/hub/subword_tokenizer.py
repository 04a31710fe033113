"""The SentencePiece tokenizer as one of transformers."""

from pathlib import Path
from typing import Any

from data.tokenizers.subwords import MODEL, SentencePieceTokenizer
from lm.hub.tokenization import HubTokenizer


class HubSentencePieceTokenizer(HubTokenizer):
    """SentencePiece's own segmentation, with an exact way back to the text."""

    vocab_files_names = {"vocab_file": MODEL}  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: Any) -> None:
        self.vocab_file = vocab_file
        vocabulary = SentencePieceTokenizer.load(Path(vocab_file).parent)
        super().__init__(vocabulary, vocabulary.names, **kwargs)
