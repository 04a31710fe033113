"""Vocabularies: bytes <-> token ids, exact in both directions, with the bytes of each token."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from data.files import hash_json, read_json, write_json

DESCRIPTION = "vocabulary.json"
# ASCII white space, what `bytes.split()` splits on.
IS_SPACE = np.zeros(256, dtype=bool)
IS_SPACE[list(b" \t\n\r\x0b\x0c")] = True


class Vocabulary(ABC):
    """A finite set of tokens, each standing for a fixed string of bytes.

    name: kind and size, printed with results; size: number of ids; start: id fed as context before
    the first token of a stream; dtype: smallest unsigned integer type that holds every id;
    needs_lines: `encode` must be given whole lines for its result not to depend on where a text
    is cut into blocks.
    """

    kind: ClassVar[str]
    needs_lines: ClassVar[bool]
    size: int
    start: int

    @property
    def name(self) -> str:
        """Kind and size, such as "bytes-256"."""
        return f"{self.kind}-{self.size}"

    @property
    def dtype(self) -> np.dtype[Any]:
        """uint8, uint16 or uint32: the smallest that holds every id."""
        return np.min_scalar_type(self.size - 1)

    @property
    @abstractmethod
    def hash(self) -> str:
        """SHA-256 of all that decides which ids a text becomes."""

    @property
    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """Number of raw bytes each token stands for, int64 [size]; 0 for control tokens."""

    @abstractmethod
    def encode(self, text: bytes) -> np.ndarray:
        """Ids of a text, 1-D of `dtype`; ValueError for bytes that this vocabulary cannot hold."""

    @abstractmethod
    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes that ids stand for: `decode(encode(text)) == text`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write into an existing folder what `load_vocabulary` needs."""


class ByteVocabulary(Vocabulary):
    """The 256 bytes; context before the first token is a newline."""

    kind = "bytes"
    needs_lines = False
    size = 256
    start = 10

    @property
    def hash(self) -> str:
        """SHA-256 of the kind, which says all."""
        return hash_json({"kind": self.kind})

    @property
    def token_bytes(self) -> np.ndarray:
        """One byte a token, int64 [256]."""
        return np.ones(self.size, dtype=np.int64)

    def encode(self, text: bytes) -> np.ndarray:
        """The bytes themselves, uint8 [len(text)]."""
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes themselves."""
        return np.asarray(ids, dtype=np.uint8).tobytes()

    def save(self, folder: Path) -> None:
        """Write the description; there is no more to a byte vocabulary."""
        write_json(folder / DESCRIPTION, {"kind": self.kind, "hash": self.hash})


def load_vocabulary(folder: Path) -> Vocabulary:
    """Read what `save` wrote; ValueError when files are missing or do not match their hash."""
    if not (folder / DESCRIPTION).is_file():
        raise ValueError(f"{folder} holds no vocabulary ({DESCRIPTION} is missing)")
    description = read_json(folder / DESCRIPTION)
    kinds = {"bytes": ByteVocabulary}
    if description["kind"] not in kinds:
        raise ValueError(f"{folder} holds a vocabulary of unknown kind {description['kind']!r}")
    vocabulary = kinds[description["kind"]]()
    if vocabulary.hash != description["hash"]:
        raise ValueError(f"{folder} is damaged: the vocabulary does not match its hash")
    return vocabulary


class WordCounter:
    """Counts white-space separated words of a text that arrives in blocks.

    A word is counted at its first byte: one that is not white space and follows white space or
    the text's beginning. The count is that of `len(text.split())`, wherever the text is cut.
    """

    def __init__(self) -> None:
        self._after_space = True

    def count(self, block: bytes) -> int:
        """Number of words that begin in the next block of the text."""
        if not block:
            return 0
        space = IS_SPACE[np.frombuffer(block, dtype=np.uint8)]
        begun = int(np.count_nonzero(space[:-1] & ~space[1:]))
        begun += int(self._after_space and not space[0])
        self._after_space = bool(space[-1])
        return begun
