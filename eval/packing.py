"""The file format of eval.compress: a header of fixed size, the coder's words, a checksum."""

import math
import struct
import zlib
from dataclasses import astuple, dataclass
from pathlib import Path

MAGIC, VERSION = b"LRLM", 1
LAYOUT = struct.Struct("<16s16sQIH")
SIZE = len(MAGIC) + 1 + LAYOUT.size
WORD = 4
"""Bytes of a word of the coder."""
MOST_THREADS = 1024
"""More than any machine computes with; a library ends the process when it gets fewer than it asks
for."""
PRECISION = 24
"""Bits of the coder's probabilities, none of which is zero."""


@dataclass(frozen=True)
class Header:
    """What a decoder must know, and what it checks."""

    model: bytes
    """Digest of the model, 16 bytes."""
    content: bytes
    """Digest of the file before, 16 bytes."""
    tokens: int
    lanes: int
    threads: int
    """Of the processor, while it was compressed."""


def pack(header: Header, payload: bytes) -> bytes:
    """A whole file."""
    body = MAGIC + bytes([VERSION]) + LAYOUT.pack(*astuple(header)) + payload
    return body + struct.pack("<I", zlib.crc32(body))


def unpack(packed: bytes, file: Path) -> tuple[Header, bytes]:
    """Header and coder's words of a whole file.

    Raises:
        ValueError: it is no such file, of another version, cut off or changed, or its header says
            what no file of this program says.
    """
    if packed[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{file} was not made by eval.compress")
    body, checksum = packed[:-4], packed[-4:]
    if len(packed) < SIZE + 4 or struct.pack("<I", zlib.crc32(body)) != checksum:
        raise ValueError(f"{file} is damaged: its checksum does not fit; copy it again")
    if packed[len(MAGIC)] != VERSION:
        raise ValueError(f"{file} was made by another version of eval.compress")
    header = Header(*LAYOUT.unpack(body[len(MAGIC) + 1 : SIZE]))
    payload = body[SIZE:]
    if not 1 <= header.threads <= MOST_THREADS:
        raise ValueError(f"{file} is damaged: it was made with {header.threads} threads")
    if not 1 <= header.lanes <= max(1, header.tokens):
        raise ValueError(
            f"{file} is damaged: it has {header.lanes} lanes of {header.tokens} tokens"
        )
    if len(payload) % WORD:
        raise ValueError(f"{file} is damaged: its text does not end with a word of the coder")
    return header, payload


def most_tokens(payload: bytes, vocabulary: int) -> int:
    """So many tokens fit into the coder's words at most: none is more probable than all but the
    least that every other token of the vocabulary keeps.
    """
    others = max(1, vocabulary - 1)
    bits_each = -math.log1p(-others / 2**PRECISION) / math.log(2)
    # The coder may leave out a word whose bits say nothing.
    return int(8 * (len(payload) + WORD) / bits_each)
