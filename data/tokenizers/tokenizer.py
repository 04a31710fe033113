"""What every tokenizer can do: text <-> ids exactly, with the bytes and words of each token."""

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.common.files import hash_file
from data.common.integrity import CHANGED, read_sealed, write_sealed

DESCRIPTION = "vocabulary.json"
AGAIN = "copy it again, or prepare the shards again"
# ASCII white space: what `bytes.split()` splits on.
IS_SPACE = np.zeros(256, dtype=bool)
IS_SPACE[list(b" \t\n\r\x0b\x0c")] = True


class Tokenizer(ABC):
    """Text to ids of a finite vocabulary, each standing for a fixed string of bytes, and back.

    kind: bytes, words, sentencepiece, hf or mulaw; needs_lines: `encode` wants whole lines, so that
    its result does not depend on where a text was cut into blocks; start: id fed as context before
    the first token of a text.
    """

    kind: ClassVar[str]
    needs_lines: ClassVar[bool] = False
    start: int

    @property
    @abstractmethod
    def pieces(self) -> list[bytes]:
        """The bytes that each id stands for, by id; empty for control tokens."""

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of all that decides which ids a text becomes."""

    @abstractmethod
    def encode(self, text: bytes) -> np.ndarray:
        """Ids of a text, 1-D of `dtype`; UnicodeDecodeError where text must be UTF-8 and is not."""

    def cut(self, text: bytes) -> int:
        """Bytes of the beginning of an unfinished text that can be encoded by themselves: whatever
        follows, neither their tokens nor those behind depend on the cut.
        """
        return text.rfind(b"\n") + 1 if self.needs_lines else len(text)

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into an existing folder what `load_tokenizer` needs, its description last."""

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes that ids stand for: `decode(encode(text)) == text`."""
        return b"".join([self.pieces[i] for i in np.asarray(ids).tolist()])

    @cached_property
    def size(self) -> int:
        """Number of ids."""
        return len(self.pieces)

    @property
    def name(self) -> str:
        """Kind and size, such as "bytes-256", printed with results."""
        return f"{self.kind}-{self.size}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, uint16 or uint32: the smallest that holds every id."""
        return np.min_scalar_type(self.size - 1)

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """Number of raw bytes that each id stands for, int64 [size]."""
        return np.array([len(piece) for piece in self.pieces], dtype=np.int64)

    def count_words(self, ids: np.ndarray, after_space: bool = True) -> int:
        """Number of white-space separated words that begin in a run of ids.

        A word is counted where its first byte stands. after_space: whether white space, or the
        text's beginning, precedes the run.
        """
        inner, opens, closes = self._words
        ids = np.asarray(ids)
        ids = ids[self.token_bytes[ids] > 0]
        if not len(ids):
            return 0
        begun = inner[ids].sum() + np.count_nonzero(closes[ids[:-1]] & opens[ids[1:]])
        return int(begun) + int(after_space and opens[ids[0]])

    @cached_property
    def _words(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each id: words begun after its first byte, begins with a word, ends in white space."""
        inner = np.zeros(self.size, dtype=np.int64)
        opens, closes = np.zeros(self.size, dtype=bool), np.zeros(self.size, dtype=bool)
        for i, piece in enumerate(self.pieces):
            if piece:
                space = IS_SPACE[np.frombuffer(piece, dtype=np.uint8)]
                inner[i] = np.count_nonzero(space[:-1] & ~space[1:])
                opens[i], closes[i] = not space[0], space[-1]
        return inner, opens, closes


def write_description(folder: Path, what: dict[str, Any], *files: str) -> None:
    """Write what there is to say of a vocabulary, with the hashes of its files, which are there."""
    hashes = {name: hash_file(folder / name) for name in files}
    write_sealed(folder / DESCRIPTION, what | {"files": hashes})


def read_description(folder: Path) -> dict[str, Any]:
    """What `write_description` wrote; ValueError if that or one of the files has changed."""
    path = folder / DESCRIPTION
    value = read_sealed(path, AGAIN)
    files = value.get("files", {}) if isinstance(value, dict) else None
    for name, digest in files.items() if isinstance(files, dict) else ():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing; {AGAIN}")
        if hash_file(folder / name) != digest:
            raise ValueError(f"{folder / name} {CHANGED}: it does not match its hash; {AGAIN}")
    if not isinstance(value, dict) or not isinstance(files, dict):
        raise ValueError(f"{path} describes no vocabulary; {AGAIN}")  # noqa: TRY004
    return value


class WordCounter:
    """Counts white-space separated words of a text that arrives in blocks.

    The count is that of `len(text.split())` on bytes, wherever the text is cut.
    """

    def __init__(self) -> None:
        self._after_space = True

    def count(self, block: bytes) -> int:
        """Number of words that begin in the next block of the text."""
        if not block:
            return 0
        space = IS_SPACE[np.frombuffer(block, dtype=np.uint8)]
        begun = np.count_nonzero(space[:-1] & ~space[1:])
        begun += int(self._after_space and not space[0])
        self._after_space = bool(space[-1])
        return int(begun)
