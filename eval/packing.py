"""The file format of eval.compress: a header of fixed size, the coder's words, a checksum."""

import struct
import zlib
from dataclasses import astuple, dataclass
from pathlib import Path

MAGIC, VERSION = b"LRLM", 1
LAYOUT = struct.Struct("<16s16sQIH")
SIZE = len(MAGIC) + 1 + LAYOUT.size


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
        ValueError: it is no such file, of another version, cut off or changed.
    """
    if packed[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{file} was not made by eval.compress")
    body, checksum = packed[:-4], packed[-4:]
    if len(packed) < SIZE + 4 or struct.pack("<I", zlib.crc32(body)) != checksum:
        raise ValueError(f"{file} is damaged: its checksum does not fit; copy it again")
    if packed[len(MAGIC)] != VERSION:
        raise ValueError(f"{file} was made by another version of eval.compress")
    header = Header(*LAYOUT.unpack(body[len(MAGIC) + 1 : SIZE]))
    return header, body[SIZE:]
