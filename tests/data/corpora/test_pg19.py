"""PG-19's reader, on real text where there is some and on full-format miniatures."""

import csv
import gzip
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from data.corpora import pg19
from data.corpora.checksums import read_checksums
from data.documents import Official
from data.prepare import DataConfig, prepare
from data.shards import Shards
from tests.data.containers import parquet

Write = Callable[[dict[str, bytes]], Path]
Unpack = Callable[[str], Path]


def build(tmp_path: Path, corpus: str, source: Path | str | None, **options: Any) -> Shards:
    place = tmp_path / f"shards{len(list(tmp_path.iterdir()))}"
    given = None if source is None else str(source)
    return prepare(DataConfig(corpus, place, given, **options), workers=1)


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
    with pytest.raises(ValueError, match=r"metadata\.csv, line 1 is not ID, title, year, URL"):
        build(tmp_path, "pg19", source)


@pytest.mark.slow
def test_real_pg19_books_are_the_official_ones(tmp_path: Path, unpacked: Unpack) -> None:
    folder = unpacked("pg19-sample.tar.xz")
    source = next(path.parent for path in folder.rglob("metadata.csv"))
    shards = build(tmp_path, "pg19", source, vocabulary="bytes")
    assert [len(shards.split(split).documents) for split in shards.splits] == [383, 17, 12]
    official = read_checksums(unpacked("pg19-official-splits.csv.xz")).texts
    details = shards.split("train").details
    assert all(book.sha256 == official[book.name].sha256 for book in details)
    assert all(1400 < int(book.year or 0) < 1919 for book in details)


def books_list(**changed: str) -> bytes:
    """The list of BOOKS, with lengths."""
    rows = {Path(name).stem: [str(len(text)), digest(text)] for name, text in BOOKS.items()}
    return "".join(
        f"{number},train,{size},{changed.get(f'b{number}', sha)}\n"
        for number, (size, sha) in rows.items()
    ).encode()


LISTS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "holds no checksums"),
    "a header alone": (b"id,sha256\n", "holds no checksums"),
    "blank lines": (b"\n\n , \n", "holds no checksums"),
    "other books": (
        f"77,{'0' * 64}\n78,{'1' * 64}\n".encode(),
        "lists none of 4 books: 9, 10, 3, 4",
    ),
    "some books": (books_list().split(b"\n", 1)[1], "lists 3 of 4 books and not 9"),
    "no hash": (books_list() + b"5,train,7,abc\n", "line 5 is not ID, ..., SHA-256"),
    "one column": (b"9\n10\n", "line 1 is not ID, ..., SHA-256"),
    "two hashes": (books_list() + f"9,train,1,{'0' * 64}\n".encode(), "line 5 gives 9 another"),
    "a long field": (b"9," + b"a" * 200_000 + b"\n", "is not CSV .*field larger"),
    "no UTF-8": (b"9,\xff\xfe,1\n", "is not valid UTF-8"),
    "cut short": (gzip.compress(books_list())[:-9], "is damaged or cut short"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_list_that_does_not_cover_the_books_is_refused(
    tmp_path: Path, small_pg19: Path, case: str
) -> None:
    data, message = LISTS[case]
    path = tmp_path / ("list.csv.gz" if case == "cut short" else "list.csv")
    path.write_bytes(data)
    options: dict[str, Any] = {"vocabulary": "bytes", "checksums": path}
    with pytest.raises(ValueError, match=message) as refusal:
        build(tmp_path, "pg19", small_pg19, **options)
    assert "\n" not in str(refusal.value)
    if case != "some books":
        with pytest.raises(ValueError, match=message):
            build(tmp_path, "pg19", small_pg19, **options, checksums_mismatch="warn")


@pytest.mark.parametrize("layout", ["files", "parquet", "hub"])
def test_books_that_differ_are_named_with_their_bytes_and_read_if_one_wants(
    tmp_path: Path, small_pg19: Path, capsys: pytest.CaptureFixture[str], layout: str
) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(books_list().replace(b"3,train", b"33,train"))
    short = BOOKS["test/4.txt"][1:]
    (small_pg19 / "test/4.txt").write_bytes(short)
    source: Path | str = small_pg19
    if layout != "files":
        for split in ("train", "validation", "test"):
            books = sorted((small_pg19 / split).iterdir())
            table = parquet(
                short_book_title=[book.stem for book in books],
                publication_date=[1900 for _ in books],
                url=[f"http://x/{book.stem}" for book in books],
                text=[book.read_bytes().decode() for book in books],
            )
            (tmp_path / "mirror").mkdir(exist_ok=True)
            (tmp_path / "mirror" / f"{split}-0.parquet").write_bytes(table)
        source = f"{'hub:' if layout == 'hub' else ''}{tmp_path / 'mirror'}"
    options: dict[str, Any] = {"vocabulary": "bytes", "checksums": path}
    missing = r"not 3; give|3 is not in the list of checksums|4 \(test\)"
    with pytest.raises(ValueError, match=missing):
        build(tmp_path, "pg19", source, **options)
    path.write_bytes(books_list())
    with pytest.raises(ValueError, match=r"4 \(test\) .* has 1 bytes fewer: .*mismatch warn"):
        build(tmp_path, "pg19", source, **options)
    path.write_bytes(books_list().replace(b"3,train", b"33,train"))
    config = DataConfig("pg19", tmp_path / "shards", str(source), **options)
    shards = prepare(replace(config, checksums_mismatch="warn"), workers=1)
    told = capsys.readouterr().err
    assert "4 (test) does not have the SHA-256" in told and "and has 1 bytes fewer" in told
    assert "3 (validation) is not in the list of checksums" in told
    checked = shards.manifest.source.checksums
    assert checked is not None and checked.texts == 4
    assert [*checked.differ] == ["3 (validation)", "4 (test)"]
    assert shards.split("test").tokens.tobytes() == short
    # The same folder is not taken for one that was checked and found right.
    with pytest.raises(ValueError, match=r"has texts that differ .* such as 3 \(validation\)"):
        prepare(config, workers=1)


def test_shards_that_were_not_checked_are_not_taken_as_checked(
    tmp_path: Path, small_pg19: Path
) -> None:
    config = DataConfig("pg19", tmp_path / "shards", str(small_pg19), vocabulary="bytes")
    prepare(config, workers=1)
    path = tmp_path / "list.csv"
    path.write_bytes(books_list())
    with pytest.raises(ValueError, match=r"was not checked against .*list\.csv"):
        prepare(replace(config, checksums=path), workers=1)
    with pytest.raises(ValueError, match="checksums_mismatch has no effect with no checksums"):
        replace(config, checksums_mismatch="warn")


def test_metadata_with_a_header_blank_lines_and_empty_years_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metadata.csv"
    path.write_bytes(
        b'\xef\xbb\xbfid,title,year,url\r\n\r\n9,"Nine,\r\na book",1900,u\r\n10,Ten,,u\r\n ,,,\r\n'
        b"11,Eleven,1911\r\n"
    )
    assert pg19.read_metadata(path) == {
        "9": {"title": "Nine,\r\na book", "year": 1900},
        "10": {"title": "Ten"},
        "11": {"title": "Eleven", "year": 1911},
    }


BAD_METADATA: dict[str, tuple[bytes, str]] = {
    "year": (b"1,One,1900,u\n\n2,Two,MCM,u\n", r"metadata\.csv, line 3 is not ID, title, year"),
    "first year": (b"1,One,MCM,u\n", "line 1 is not ID, title, year, URL"),
    "columns": (b"1,One,1900,u\n2,Two\n", "line 2 is not ID, title, year, URL"),
    "Latin-1": ("1,Größe,1900,u\n".encode("latin-1"), "is not valid UTF-8"),
    "long field": (b"1," + b"a" * 140_000 + b",1900,u\n", "is not CSV .*field larger"),
}


@pytest.mark.parametrize("case", BAD_METADATA)
def test_bad_metadata_names_the_line(tmp_path: Path, case: str) -> None:
    data, message = BAD_METADATA[case]
    (tmp_path / "metadata.csv").write_bytes(data)
    with pytest.raises(ValueError, match=message) as refusal:
        pg19.read_metadata(tmp_path / "metadata.csv")
    assert "\n" not in str(refusal.value)


def test_books_are_read_packed_and_with_capitals_and_hidden_files_are_passed_over(
    tmp_path: Path, small_pg19: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (small_pg19 / "train/9.txt").rename(small_pg19 / "train/9.TXT")
    text = (small_pg19 / "train/10.txt").read_bytes()
    (small_pg19 / "train/10.txt").unlink()
    (small_pg19 / "train/10.txt.gz").write_bytes(gzip.compress(text))
    for name in ("train/._9.txt", "train/.ipynb_checkpoints/9.txt", "__MACOSX/train/9.txt"):
        (small_pg19 / name).parent.mkdir(parents=True, exist_ok=True)
        (small_pg19 / name).write_bytes(b"\0")
    (small_pg19 / "train/notes.pdf").write_bytes(b"")
    (small_pg19 / "more").mkdir()
    (small_pg19 / "more/5.txt").write_bytes(b"no")
    shards = build(tmp_path, "pg19", small_pg19, vocabulary="bytes")
    assert (shards.corpus, shards.split("train").names) == ("pg19", ["9", "10"])
    told = capsys.readouterr().err
    assert "reading 3 .txt, 1 .csv, 1 .txt.gz, passed over 3 hidden, 1 .pdf, 1 .txt\n" in told
    (small_pg19 / "train/10.txt").write_bytes(text)
    with pytest.raises(ValueError, match=r"10\.txt.* are one book"):
        build(tmp_path, "pg19", small_pg19, vocabulary="bytes")
