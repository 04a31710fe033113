"""Files with flipped, missing and foreign bytes are read or refused by name, and nothing else."""

import bz2
import gzip
import io
import lzma
import random
import wave
from pathlib import Path

import pytest
import zstandard

from data.corpora.audio import open_audio
from data.corpora.text import open_text
from tests.data.containers import LINES, epub, parquet, tarred, zipped

TEXT = b"some text\n" * 300
FILES = {f"{i}.txt": b"text %d\n" % i * 50 for i in range(5)}


def sound() -> bytes:
    memory = io.BytesIO()
    with wave.open(memory, "wb") as file:
        file.setparams((2, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(range(256)) * 8)
    return memory.getvalue()


WHOLE = {
    "a.zip": zipped({"x.txt": b"text\n" * 50, "y.jsonl": LINES, "z.html": b"<p>a"}),
    "a.tar": tarred(FILES),
    "a.tar.gz": gzip.compress(tarred(FILES)),
    "a.epub": zipped(epub()),
    "a.txt.gz": gzip.compress(TEXT),
    "a.txt.xz": lzma.compress(TEXT),
    "a.txt.bz2": bz2.compress(TEXT),
    "a.jsonl.zst": zstandard.compress(LINES * 40),
    "a.jsonl": LINES * 5,
    "a.json": b'[{"text": "a"}, {"text": "b"}]',
    "a.parquet": parquet(text=[f"row {i}" for i in range(200)]),
    "a.html": b"<meta charset=utf-8><table><tr><td>x</table><ul><li>a</ul>",
    "a.wav": sound(),
}


def damage(data: bytes, chance: random.Random) -> bytes:
    """Cut short, with flipped bits, with a foreign byte, or with some bytes more or less."""
    changed = bytearray(data)
    place = chance.randrange(len(data))
    match chance.randrange(4):
        case 0:
            del changed[place:]
        case 1:
            for _ in range(chance.choice([1, 1, 2, 5])):
                changed[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        case 2:
            changed[place] = chance.choice([0, 0x7F, 0x80, 0xFF])
        case _:
            changed[place : place + chance.randrange(8)] = chance.randbytes(chance.randrange(8))
    return bytes(changed)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", WHOLE)
def test_a_damaged_file_is_read_or_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    refused = 0
    for seed in range(40):
        path.write_bytes(damage(WHOLE[name], random.Random(seed)))
        try:
            if name == "a.wav":
                source = open_audio(str(path))
            else:
                source = open_text(str(path), "text", "bits_per_byte", tmp_path / str(seed))
            for part in source.parts:
                for _ in part.read():
                    pass
        except ValueError as error:
            refusal = str(error)
            refused += 1
            assert name in refusal, refusal
            assert "\n" not in refusal, refusal
    assert refused > 5
