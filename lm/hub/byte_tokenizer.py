"""The byte vocabulary as a tokenizer of transformers."""

from typing import Any

from data.tokenizers.fixed import ByteVocabulary
from lm.hub.tokenization import VocabularyTokenizer


class ByteTokenizer(VocabularyTokenizer):
    """Each byte of the UTF-8 text is a token, named by the character of that number."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(ByteVocabulary(), [chr(value) for value in range(256)], **kwargs)
