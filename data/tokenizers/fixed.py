"""Tokenizers that need no training: bytes, and 8-bit mu-law audio."""

from functools import cached_property
from pathlib import Path

import numpy as np

from data.common.files import hash_json
from data.tokenizers.tokenizer import Tokenizer, write_description

MU = 255


class ByteTokenizer(Tokenizer):
    """The 256 bytes; context before the first token is a newline."""

    kind = "bytes"
    start = 10

    @cached_property
    def pieces(self) -> list[bytes]:
        """Each byte by itself."""
        return [bytes([value]) for value in range(256)]

    @property
    def hash(self) -> str:
        """SHA-256 of the kind, which says all."""
        return hash_json({"kind": self.kind})

    def encode(self, text: bytes) -> np.ndarray:
        """The bytes themselves, uint8 [len(text)]."""
        return np.frombuffer(text, dtype=np.uint8)

    def decode(self, ids: np.ndarray) -> bytes:
        """The bytes themselves."""
        return np.asarray(ids, dtype=np.uint8).tobytes()

    def save(self, folder: Path) -> None:
        """Write the description; there is no more to it."""
        write_description(folder, {"kind": self.kind, "hash": self.hash})


class MuLawTokenizer(ByteTokenizer):
    """256 levels of a mu-law curve (mu = 255) over 16-bit samples; start is silence.

    `encode` takes little-endian 16-bit PCM and loses what 8 bits cannot hold; `decode` gives PCM of
    the levels, which encodes to the same ids.
    """

    kind = "mulaw"
    start = 128

    @cached_property
    def pieces(self) -> list[bytes]:
        """Two bytes of PCM a level: the sample that the curve puts in the level's middle."""
        curve = 2 * np.arange(256) / MU - 1
        samples = np.sign(curve) * np.expm1(np.abs(curve) * np.log1p(MU)) / MU * 2**15
        pcm = np.clip(np.round(samples), -(2**15), 2**15 - 1).astype("<i2")
        return [sample.tobytes() for sample in pcm]

    @cached_property
    def _levels(self) -> np.ndarray:
        """Level of each 16-bit sample, by the sample's bits read as unsigned."""
        samples = np.arange(2**16, dtype=np.uint16).view(np.int16) / 2**15
        curve = np.sign(samples) * np.log1p(MU * np.abs(samples)) / np.log1p(MU)
        return np.floor((curve + 1) / 2 * MU + 0.5).astype(np.uint8)

    def encode(self, text: bytes) -> np.ndarray:
        """Levels of 16-bit samples, uint8 [len(text) / 2]."""
        return self._levels[np.frombuffer(text, dtype="<u2")]

    def decode(self, ids: np.ndarray) -> bytes:
        """16-bit PCM of levels."""
        return np.frombuffer(b"".join(self.pieces), dtype="<i2")[np.asarray(ids)].tobytes()
