"""The byte tokenizer as one of transformers."""

from typing import Any

from data.tokenizers.fixed import ByteTokenizer
from lm.hub.tokenization import HubTokenizer


class HubByteTokenizer(HubTokenizer):
    """Each byte of the UTF-8 text is a token, named by the character of that number."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(ByteTokenizer(), [chr(value) for value in range(256)], **kwargs)
