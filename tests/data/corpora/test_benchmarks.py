"""The benchmarks' readers, on real text where there is some and on full-format miniatures."""

import csv
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

from data.corpora import enwik8, pg19, wikitext
from data.documents import Official
from data.prepare import DataConfig, prepare
from data.shards import Shards

Write = Callable[[dict[str, bytes]], Path]
Unpack = Callable[[str], Path]


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


# WikiText-103

TRAIN = (
    b" \n = One = \n \n a <unk> b \n = = Part = = \n \n c d \n \n"
    b" = Wins ; L = \n \n e f \n \n = Two = \n \n a b a \n \n"
)
VALID = b" \n = One = \n \n a b \n \n"
TEST = b" \n = Two = \n \n c <unk> \n \n"


@pytest.fixture
def small_wikitext(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A stand-in for the whole of WikiText-103."""
    texts = {"train": TRAIN, "valid": VALID, "test": TEST}
    words = {
        name: len(text.split()) + text.count(b"\n")
        for name, text in zip(("train", "validation", "test"), texts.values(), strict=True)
    }
    types = len(set(TRAIN.split())) + 1
    monkeypatch.setattr(wikitext, "OFFICIAL", Official(words, vocabulary=types))
    return texts


def test_wikitext_is_the_same_from_files_zip_parquet_and_hub(
    tmp_path: Path, write: Write, small_wikitext: dict[str, bytes]
) -> None:
    files = {f"wiki.{name}.tokens": text for name, text in small_wikitext.items()}
    source = write(files)
    with zipfile.ZipFile(tmp_path / "wikitext-103-v1.zip", "w") as archive:
        for name, text in files.items():
            archive.writestr(f"wikitext-103/{name}", text)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, text in small_wikitext.items():
        split = "validation" if name == "valid" else name
        rows = [line + "\n" if line.strip() else "" for line in text.decode().split("\n")[:-1]]
        pyarrow.parquet.write_table(
            pyarrow.table({"text": rows}), mirror / f"{split}-00000-of-00001.parquet"
        )
    sources = [source, tmp_path / "wikitext-103-v1.zip", mirror, f"hub:{mirror}"]
    built = [build(tmp_path, "wikitext", place) for place in sources]
    assert len({shards.hash for shards in built}) == 1
    shards = built[0]
    assert (shards.corpus, shards.unit) == ("wikitext-103", "word_perplexity")
    for split, text in zip(shards.splits, small_wikitext.values(), strict=True):
        found = shards.split(split)
        assert shards.vocabulary.decode(found.tokens) == text
        assert found.denominator_words == found.words == len(found.tokens)
    # The legend "Wins ; L" has text around it; the first article begins with the first line.
    assert shards.split("train").names == ["One", "Wins ; L", "Two"]


def test_word_perplexity_has_the_same_denominator_for_subwords(
    tmp_path: Path, write: Write, small_wikitext: dict[str, bytes]
) -> None:
    source = write({f"wiki.{name}.raw": text * 9 for name, text in small_wikitext.items()})
    shards = build(tmp_path, "wikitext", source, vocabulary="sentencepiece", vocabulary_size=281)
    assert shards.corpus == "wikitext-103-raw-part"
    assert shards.split("train").words == 9 * (len(TRAIN.split()) + TRAIN.count(b"\n"))
    assert shards.split("train").denominator_words is None
    assert shards.vocabulary.decode(shards.split("test").tokens) == TEST * 9


def test_real_wikitext_has_the_published_counts(
    tmp_path: Path, real_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "wikitext"
    source.mkdir()
    for name in ("wiki.valid.tokens.xz", "wiki.train.prefix.tokens.xz"):
        (source / name).symlink_to(real_text / name)
    shards = build(tmp_path, "wikitext", source)
    validation, train = shards.split("validation"), shards.split("train")
    assert len(validation.tokens) == validation.denominator_words == 217_646
    assert (len(validation.documents), len(train.documents)) == (60, 154)
    assert (len(train.tokens), train.denominator_words) == (548_410, None)
    # 34,064 types and <eos>.
    assert shards.vocabulary.size == 34_065
    assert shards.corpus == "wikitext-103-part"
    assert "train has 548,410 words, not 103,227,021" in capsys.readouterr().err
    text = lzma.decompress((real_text / "wiki.train.prefix.tokens.xz").read_bytes())
    assert shards.vocabulary.decode(train.tokens) == text


def test_a_folder_without_wikitext_is_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match=r"holds no WikiText.*wiki\.train\.tokens"):
        build(tmp_path, "wikitext", write({"a.txt": b"x"}))
    source = write({"wiki.valid.tokens": b" a \n", "wiki.valid.raw": b" a \n"})
    with pytest.raises(ValueError, match="several files for one split"):
        build(tmp_path, "wikitext", source)


# PG-19

BOOKS = {
    "train/9.txt": b"A book.\r\n\r\nThe end.\r\n" * 20,
    "train/10.txt": "Ein Bücherbuch.\r\n".encode() * 20,
    "validation/3.txt": b"One.\r\n",
    "test/4.txt": b"Two words.\r\n",
}
METADATA = b'9,"Nine, a book",1900,http://www.gutenberg.org/ebooks/9\n4,Four,1850,http://x/4\n'


def digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


@pytest.fixture
def small_pg19(monkeypatch: pytest.MonkeyPatch, write: Write) -> Path:
    """A stand-in for the whole of PG-19, in DeepMind's layout."""
    digests = {}
    for split in ("train", "validation", "test"):
        books = [(n, t) for n, t in BOOKS.items() if n.startswith(split)]
        texts = sorted(f"{Path(name).stem} {digest(text)}\n" for name, text in books)
        digests[split] = digest("".join(texts).encode())
    words = {"train": 7, "validation": 8, "test": 9}
    monkeypatch.setattr(pg19, "OFFICIAL", Official(words, digests))
    return write(BOOKS | {"metadata.csv": METADATA})


def test_pg19_books_have_titles_and_the_published_denominators(
    tmp_path: Path, small_pg19: Path
) -> None:
    shards = build(tmp_path, "pg19", small_pg19, vocabulary_size=279)
    assert (shards.corpus, shards.unit) == ("pg19", "word_perplexity")
    train = shards.split("train")
    assert train.names == ["9", "10"]
    assert train.details[0].title == "Nine, a book"
    assert train.details[0].year == 1900
    text = BOOKS["train/9.txt"] + BOOKS["train/10.txt"]
    assert shards.vocabulary.decode(train.tokens) == text
    assert train.documents["words"].tolist() == [20 * 4, 20 * 2]
    assert [shards.split(split).denominator_words for split in shards.splits] == [7, 8, 9]
    (small_pg19 / "train/9.txt").write_bytes(b"Another book.\r\n" * 20)
    part = build(tmp_path, "pg19", small_pg19, vocabulary_size=279)
    assert part.corpus == "pg19-part"
    assert [part.split(split).denominator_words for split in part.splits] == [None, 8, 9]


def test_pg19_from_parquet_and_hub_is_recognised_by_its_texts(
    tmp_path: Path, small_pg19: Path
) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for split in ("train", "validation", "test"):
        books = {n: t for n, t in BOOKS.items() if n.startswith(split)}
        table = {
            "short_book_title": [f"Title {Path(name).stem}" for name in books],
            "publication_date": [1900 for _ in books],
            "url": [f"http://www.gutenberg.org/ebooks/{Path(name).stem}" for name in books],
            # Copies on the hub were read in text mode.
            "text": [text.decode().replace("\r\n", "\n") for text in books.values()],
        }
        path = mirror / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(pyarrow.table(table), path)
    for source in (mirror, f"hub:{mirror}"):
        shards = build(tmp_path, "pg19", source, vocabulary="bytes")
        assert shards.corpus == "pg19"
        assert shards.split("train").names == ["9", "10"]
        assert shards.split("test").details[0].title == "Title 4"
        assert shards.split("validation").denominator_words == 8


def test_a_copy_with_other_line_ends_is_recognised_by_its_words(
    tmp_path: Path, small_pg19: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = {"train": 120, "validation": 1, "test": 2}
    monkeypatch.setattr(pg19, "OFFICIAL", Official(words, pg19.OFFICIAL.digests))
    # Reading in text mode forgets which line of a book ended otherwise than the others.
    (small_pg19 / "train/9.txt").write_bytes(BOOKS["train/9.txt"].replace(b"\r\n", b"\n", 1))
    shards = build(tmp_path, "pg19", small_pg19, vocabulary="bytes")
    assert shards.corpus == "pg19"
    assert shards.split("train").denominator_words == 120


def test_pg19_checksums_find_a_wrong_book(tmp_path: Path, small_pg19: Path) -> None:
    checksums = tmp_path / "sums.csv"
    with checksums.open("w", newline="") as file:
        rows = [(Path(name).stem, "x", digest(text)) for name, text in BOOKS.items()]
        csv.writer(file).writerows([("id", "split", "sha256"), *rows])
    options: dict[str, Any] = {"vocabulary": "bytes", "checksums": checksums}
    assert build(tmp_path, "pg19", small_pg19, **options).corpus == "pg19"
    (small_pg19 / "test/4.txt").write_bytes(b"Two  words.\r\n")
    with pytest.raises(ValueError, match=r"4 \(test\) does not have the SHA-256"):
        build(tmp_path, "pg19", small_pg19, **options)
    with pytest.raises(ValueError, match="is not there; checksums wants"):
        build(tmp_path, "pg19", small_pg19, **options | {"checksums": tmp_path / "none"})


def test_bad_metadata_and_no_books_are_refused(tmp_path: Path, write: Write) -> None:
    with pytest.raises(ValueError, match=r"holds no books.*train/ID\.txt"):
        build(tmp_path, "pg19", write({"a.txt": b"x"}))
    source = write({"train/1.txt": b"x", "metadata.csv": b"1,Title\n"})
    with pytest.raises(ValueError, match="must have rows of ID, title, year, URL"):
        build(tmp_path, "pg19", source)


@pytest.mark.slow
def test_real_pg19_books_are_the_official_ones(tmp_path: Path, unpacked: Unpack) -> None:
    folder = unpacked("pg19-sample.tar.xz")
    source = next(path.parent for path in folder.rglob("metadata.csv"))
    shards = build(tmp_path, "pg19", source, vocabulary="bytes")
    assert [len(shards.split(split).documents) for split in shards.splits] == [383, 17, 12]
    official = pg19.read_checksums(unpacked("pg19-official-splits.csv.xz"))
    details = shards.split("train").details
    assert all(book.sha256 == official[book.name] for book in details)
    assert all(1400 < int(book.year or 0) < 1919 for book in details)
