"""The benchmarks' readers, on real text where there is some and on full-format miniatures."""

import gzip
import hashlib
import lzma
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data.corpora import enwik8
from data.prepare import DataConfig, prepare
from data.shards import Shards

Write = Callable[[dict[str, bytes]], Path]


def build(tmp_path: Path, corpus: str, source: Path | str | None, **options: Any) -> Shards:
    place = tmp_path / f"shards{len(list(tmp_path.iterdir()))}"
    given = None if source is None else str(source)
    return prepare(DataConfig(corpus, place, given, **options), workers=1)


# pystdlib


def test_pystdlib_is_the_library_by_path_about_90_5_5(tmp_path: Path) -> None:
    shards = build(tmp_path, "pystdlib", None)
    sizes = [shards.split(split).bytes for split in ("train", "validation", "test")]
    shares = np.array(sizes) / sum(sizes)
    assert np.abs(shares - [0.9, 0.05, 0.05]).max() < 0.02
    names = [name for split in shards.splits for name in shards.split(split).names]
    assert "json/decoder.py" in names
    assert not any({"test", "site-packages", "__pycache__"} & set(n.split("/")) for n in names)
    assert names != sorted(names)
    assert shards.split("train").names == sorted(shards.split("train").names)
    assert shards.manifest.source.model_extra == {"python": platform.python_version()}


# Enwik8


def test_enwik8_prefix_of_real_text(tmp_path: Path, real_text: Path) -> None:
    path = real_text / "enwik8-first-4150000.xz"
    shards = build(tmp_path, "enwik8", path, prefix=True)
    assert shards.corpus == "enwik8-prefix"
    sizes = [len(shards.split(split).tokens) for split in shards.splits]
    assert sizes == [3_735_000, 207_500, 207_500]
    whole = b"".join(shards.split(split).tokens.tobytes() for split in shards.splits)
    assert whole == lzma.decompress(path.read_bytes())
    with pytest.raises(ValueError, match=r"4,150,000 bytes and Enwik8 has 100,000,000.*prefix"):
        build(tmp_path, "enwik8", path)


@pytest.fixture
def small_enwik8(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A stand-in for the whole of Enwik8."""
    text = b"wiki page\n" * 200
    monkeypatch.setattr(enwik8, "FULL_BYTES", len(text))
    monkeypatch.setattr(enwik8, "FULL_SHA1", hashlib.sha1(text).hexdigest())
    return text


def test_enwik8_is_the_same_from_every_container(
    tmp_path: Path, write: Write, small_enwik8: bytes
) -> None:
    source = write(
        {
            "enwik8": small_enwik8,
            "enwik8.gz": gzip.compress(small_enwik8),
            "enwik8.xz": lzma.compress(small_enwik8),
        }
    )
    with zipfile.ZipFile(source / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", small_enwik8)
    mirror = tmp_path / "mirror" / "enwik8-raw" / "train"
    mirror.mkdir(parents=True)
    pyarrow.parquet.write_table(
        pyarrow.table({"text": [small_enwik8.decode()]}), mirror / "0000.parquet"
    )
    sources = [*sorted(source.iterdir()), f"hub:{tmp_path / 'mirror'}"]
    built = [build(tmp_path, "enwik8", path) for path in sources]
    assert len({shards.hash for shards in built}) == 1
    assert [built[0].split(split).bytes for split in built[0].splits] == [1800, 100, 100]
    assert (built[0].corpus, built[0].unit) == ("enwik8", "bits_per_byte")


def test_wrong_enwik8_is_refused(tmp_path: Path, write: Write, small_enwik8: bytes) -> None:
    source = write({"wrong": small_enwik8.replace(b"page", b"pages")[:2000], "empty": b""})
    (source / "cut.xz").write_bytes(lzma.compress(small_enwik8)[:-30])
    with pytest.raises(ValueError, match="is not Enwik8: its SHA-1"):
        build(tmp_path, "enwik8", source / "wrong")
    with pytest.raises(ValueError, match="is empty"):
        build(tmp_path, "enwik8", source / "empty")
    with pytest.raises(ValueError, match="is damaged or cut short"):
        build(tmp_path, "enwik8", source / "cut.xz")
    with pytest.raises(ValueError, match="is a folder"):
        build(tmp_path, "enwik8", source)
    with pytest.raises(ValueError, match="it is no prefix"):
        build(tmp_path, "enwik8", source / "wrong", prefix=True)
