"""Our tokenizers as those of transformers.

A text becomes the ids that the data pipeline makes of it, behind the context that precedes every
text; ids become the bytes that they stand for, read as UTF-8. Each kind has a file of its own: an
exported folder carries what that imports, and one of bytes should not want SentencePiece.
"""

from pathlib import Path
from typing import Any

import numpy as np
from transformers import AddedToken, PreTrainedTokenizer

from data.tokenizers.tokenizer import DESCRIPTION, Tokenizer
from lm.hub.weights import forget_hashes

PAD = "<pad>"


class HubTokenizer(PreTrainedTokenizer):
    """A tokenizer of transformers over one of ours; a subclass knows which, and its tokens' names.

    The only special token is <pad>, behind the last id of the vocabulary; special tokens' names in
    a text are text. Texts are padded on the left, where generation wants it. Programs that ask for
    a token before every text get the vocabulary's own context, which may be text elsewhere, and for
    one behind it <pad>, which no text has.
    """

    model_input_names = ["input_ids", "attention_mask"]  # noqa: RUF012

    def __init__(self, vocabulary: Tokenizer, names: list[str], **kwargs: Any) -> None:
        self.vocabulary = vocabulary
        self._names = names
        self._ids = {name: i for i, name in enumerate(names)}
        pad = AddedToken(PAD, normalized=False, special=True)
        self._added_tokens_decoder = {vocabulary.size: pad}
        fixed = {"clean_up_tokenization_spaces": False, "split_special_tokens": True}
        defaults = {"pad_token": pad, "padding_side": "left"}
        super().__init__(**(defaults | kwargs | fixed))

    @property
    def vocab_size(self) -> int:
        """Tokens of the vocabulary, without <pad>."""
        return self.vocabulary.size

    @property
    def bos_token(self) -> str:
        """Name of the context that precedes every text."""
        return self._names[self.vocabulary.start]

    @property
    def bos_token_id(self) -> int:
        """Its id."""
        return self.vocabulary.start

    @property
    def eos_token(self) -> str:
        """<pad>: nothing in the vocabulary ends a text."""
        return PAD

    @property
    def eos_token_id(self) -> int:
        """Its id, which the model never writes."""
        return self.vocabulary.size

    def get_vocab(self) -> dict[str, int]:
        """Ids by the tokens' names."""
        return self._ids | self.added_tokens_encoder

    def _tokenize(self, text: str, **_: Any) -> list[str]:
        return [self._names[i] for i in self.vocabulary.encode(text.encode()).tolist()]

    def _convert_token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    def _convert_id_to_token(self, index: int) -> str:
        return self._names[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """The text that tokens stand for; bytes that are not UTF-8 are replaced."""
        ids = [self._ids[token] for token in tokens if token in self._ids]
        return self.vocabulary.decode(np.array(ids, dtype=np.int64)).decode(errors="replace")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """The context that precedes every text, and the text, or two texts one after the other."""
        return [self.vocabulary.start, *token_ids_0, *(token_ids_1 or [])]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        """1 for padding and for the context that was put before the text."""
        if already_has_special_tokens:
            return [int(i == self.vocabulary.size) for i in token_ids_0]
        return [1] + [0] * len([*token_ids_0, *(token_ids_1 or [])])

    def create_token_type_ids_from_sequences(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        """Zeros: the model knows one kind of text."""
        return [0] * len(self.build_inputs_with_special_tokens(token_ids_0, token_ids_1))

    def save_vocabulary(
        self, save_directory: str, filename_prefix: str | None = None
    ) -> tuple[str, ...]:
        """Write the vocabulary as the data pipeline does; ValueError where a prefix is asked."""
        if filename_prefix:
            raise ValueError("a vocabulary has the names of its files; leave out filename_prefix")
        folder = Path(save_directory)
        forget_hashes(folder)
        self.vocabulary.save(folder)
        names = [*self.vocab_files_names.values()] or [DESCRIPTION]
        return tuple(str(folder / name) for name in names)
