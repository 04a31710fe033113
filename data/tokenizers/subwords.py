"""SentencePiece subwords over raw text, with an exact way back to the bytes."""

import io
import itertools
import re
from collections.abc import Iterable, Iterator
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Literal

import numpy as np
import sentencepiece

from data.common.files import atomic_path
from data.tokenizers.tokenizer import DESCRIPTION, Tokenizer, read_description, write_description

MODEL = "sentencepiece.model"
# SentencePiece writes a space as this character, so the text's own must go as bytes.
SPACE_MARK = "▁"
# The result depends on how the trainer shares out its sums, so this is not the number of cores.
TRAINING_THREADS = 16
LONGEST_LINE = 1 << 16
# Bytes, control tokens, line ends, and room for a few pieces; and what SentencePiece can count.
LEAST_SIZE, MOST_SIZE = 270, (1 << 31) - 1

Method = Literal["unigram", "bpe"]


class SentencePieceTokenizer(Tokenizer):
    """Unigram or BPE pieces, and the 256 bytes for all that no piece covers.

    Text is not normalised; both kinds of line end are tokens of their own and no piece crosses one.
    Context before the first token is SentencePiece's own beginning of sentence.
    """

    kind = "sentencepiece"
    needs_lines = True

    def __init__(self, model: bytes) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.start = self._processor.bos_id()
        self._by_bytes = {SPACE_MARK: self._byte_ids(SPACE_MARK)}
        if self._processor.is_unknown(self._processor.piece_to_id(SPACE_MARK)):
            # Of a text without spaces: SentencePiece would write one as the bytes of its mark.
            self._by_bytes[" "] = self._byte_ids(" ")

    @classmethod
    def train(cls, lines: Iterator[str], size: int, method: Method) -> "SentencePieceTokenizer":
        """Learn `size` pieces from lines of text.

        ValueError when there is none, or so little or much of it that `size` does not fit.
        """
        first = next(lines, None)
        if first is None:
            raise ValueError(
                "the training split holds no text to learn pieces from: give it some, or use the "
                "vocabulary bytes"
            )
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=short_lines(itertools.chain([first], lines)),
                model_writer=model,
                model_type=method,
                vocab_size=size,
                byte_fallback=True,
                character_coverage=0.9999,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                # Indentation, verse and tables; without, every space of a run is a token.
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["\n", "\r\n"],
                unk_id=0,
                bos_id=1,
                eos_id=-1,
                pad_id=-1,
                max_sentence_length=LONGEST_LINE,
                num_threads=TRAINING_THREADS,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(unfit(size, str(error))) from error
        return cls(model.getvalue())

    @classmethod
    def load(cls, folder: Path) -> "SentencePieceTokenizer":
        """Read what `save` wrote; the model alone will do."""
        if (folder / DESCRIPTION).is_file():
            read_description(folder)
        return cls((folder / MODEL).read_bytes())

    @cached_property
    def pieces(self) -> list[bytes]:
        """The raw bytes of each piece; none for <unk> and <s>, which text never becomes."""
        processor = self._processor
        pieces = []
        for i in range(processor.get_piece_size()):
            piece = processor.id_to_piece(i)
            if processor.is_byte(i):
                pieces.append(bytes([int(piece[3:5], 16)]))
            elif processor.is_control(i) or processor.is_unknown(i):
                pieces.append(b"")
            else:
                pieces.append(piece.replace(SPACE_MARK, " ").encode())
        return pieces

    @property
    def names(self) -> list[str]:
        """What SentencePiece calls each id."""
        return [self._processor.id_to_piece(i) for i in range(self._processor.get_piece_size())]

    @property
    def hash(self) -> str:
        """SHA-256 of the SentencePiece model."""
        return sha256(self.model).hexdigest()

    def encode(self, text: bytes) -> np.ndarray:
        """Ids of whole lines; UnicodeDecodeError where they are not UTF-8."""
        lines = [line + "\n" for line in text.decode().split("\n")]
        # The last line has no newline, or is the nothing behind the last newline.
        lines[-1] = lines[-1][:-1]
        if any(character.encode() in text for character in self._by_bytes):
            return np.array([i for line in lines for i in self._marked(line)], dtype=self.dtype)
        # Workers are processes; threads would only compete with them.
        ids = self._processor.encode(lines, num_threads=1)
        return np.fromiter(itertools.chain.from_iterable(ids), dtype=self.dtype)

    def _marked(self, line: str) -> list[int]:
        """Ids of a line that may contain characters that have to go as bytes."""
        ids: list[int] = []
        for part in re.split(f"([{''.join(self._by_bytes)}])", line):
            ids += self._by_bytes.get(part) or self._processor.encode(part)
        return ids

    def _byte_ids(self, character: str) -> list[int]:
        """Ids of the bytes of a character."""
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def save(self, folder: Path) -> None:
        """Write the SentencePiece model, then the description."""
        with atomic_path(folder / MODEL) as temporary:
            temporary.write_bytes(self.model)
        write_description(folder, {"kind": self.kind, "hash": self.hash}, MODEL)


def unfit(size: int, reason: str) -> str:
    """What to do about a number of pieces that SentencePiece cannot learn from a text."""
    if found := re.search(r"too high .* <= (\d+)", reason):
        if int(found[1]) < LEAST_SIZE:
            return (
                f"the training text is too little to learn pieces from, of which it has {found[1]} "
                f"and vocabulary_size is at least {LEAST_SIZE}: give more text, or use the "
                "vocabulary bytes"
            )
        why = f" (it has at most {found[1]})"
    else:
        found = re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason)
        why = f" (its characters alone need {found[1]})" if found else ""
    return f"no {size} pieces can be learnt from this text{why}: choose another vocabulary_size"


def short_lines(lines: Iterable[str]) -> Iterator[str]:
    """Lines cut so short that SentencePiece does not leave them out of what it learns from."""
    most = LONGEST_LINE // 4  # characters, of up to four bytes
    for line in lines:
        for start in range(0, len(line), most):
            yield line[start : start + most]
