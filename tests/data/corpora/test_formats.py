"""What is read of anyone's files, wherever they lie and however they are packed."""

import gzip
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from data.prepare import DataConfig, prepare
from tests.data.containers import LINES, PACK, epub, parquet, tarred, zipped

Write = Callable[[dict[str, bytes]], Path]
Texts = Callable[..., dict[str, bytes]]


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize("how", ["named", "glob", "folder", "zip", "tar"])
def test_usual_files_are_read_wherever_they_lie_and_however_packed(
    write: Write, texts_of: Texts, packing: str, how: str
) -> None:
    listed = json.dumps([json.loads(line) for line in LINES.split(b"\n") if line], indent=1)
    contents = {
        "a.TXT": b"\xef\xbb\xbfplain\n",
        "b.Jsonl": LINES,
        "c.ndjson": LINES,
        "d.JSON": LINES,
        "e.json": listed.encode(),
        "f.json": b'{\n"text":\n"one"}',
        "g.html": b"<script>no</script><p>page</p>",
    }
    files = {f"train/{name}{packing}": PACK[packing](data) for name, data in contents.items()}
    if how == "zip":
        source, prefix = write({"x.zip": zipped(files)}) / "x.zip", "x.zip/"
    elif how == "tar":
        source, prefix = (
            write({f"x.tar{packing}": PACK[packing](tarred(files))}),
            f"x.tar{packing}/",
        )
    elif how == "glob":
        source, prefix = f"{write(files)}/*/*", ""
    else:
        source, prefix = write(files), ""
    expected = {
        "train/a.TXT": b"plain\n",
        "train/b.Jsonl@0": "one é".encode(),
        "train/b.Jsonl@24": b"two",
        "train/c.ndjson@0": "one é".encode(),
        "train/c.ndjson@24": b"two",
        "train/d.JSON@0": "one é".encode(),
        "train/d.JSON@24": b"two",
        "train/e.json#0": "one é".encode(),
        "train/e.json#1": b"two",
        "train/f.json#0": b"one",
        "train/g.html": b"page\n",
    }
    if how == "named":
        for name in contents:
            found = texts_of(source / "train" / (name + packing))
            wanted = [text for place, text in expected.items() if place.startswith(f"train/{name}")]
            assert sorted(b"".join(found.values())) == sorted(b"".join(wanted))
        return
    named = {}
    for place, text in expected.items():
        stem, mark, number = place.partition("@") if "@" in place else place.partition("#")
        named[f"{prefix}{stem}{packing}{mark}{number}"] = text
    assert texts_of(source) == named


def test_parquet_and_books_are_read_from_folders_globs_and_archives(
    write: Write, texts_of: Texts
) -> None:
    files = {
        "train/a.PARQUET": parquet(text=["row", ""]),
        "train/b.epub": zipped(epub()),
        "train/c.txt": b"c",
    }
    source = write(files | {"test/x.zip": zipped(files)})
    book = "A\n\none\n\nzwölf\n\n".encode()
    expected = {
        f"{place}train/{name}": text
        for place in ("", "test/x.zip/")
        for name, text in {
            "a.PARQUET#0": b"row",
            "a.PARQUET#1": b"",
            "b.epub": book,
            "c.txt": b"c",
        }.items()
    }
    # A path's first name of a split counts.
    assert texts_of(source) == texts_of(f"{source}/t*/*") == expected


SAME = ("book.txt", "book.txt.gz", "book.txt.xz", "book.txt.bz2", "book.txt.zst", "book.html")


@pytest.mark.parametrize("name", SAME)
@pytest.mark.parametrize("inside", ["folders", "zip", "tar", "two zips"])
def test_files_of_one_name_are_all_read(
    write: Write, texts_of: Texts, name: str, inside: str
) -> None:
    pack = PACK.get(Path(name).suffix, bytes)
    # Two files are cut in three, more are documents.
    for count in (2, 4):
        texts = [b"text %d." % i * 40 + b"\n" for i in range(count)]
        files = {f"same/{i}/{name}": pack(text) for i, text in enumerate(texts)}
        if inside == "zip":
            source = write({"x.zip": zipped(files)}) / "x.zip"
        elif inside == "tar":
            source = write({"x.tar.gz": gzip.compress(tarred(files))}) / "x.tar.gz"
        elif inside == "two zips":
            source = write({f"{i}/x.zip": zipped({name: pack(t)}) for i, t in enumerate(texts)})
        else:
            source = write(files) / "same"
        found = b"".join(texts_of(source).values())
        assert sorted(found) == sorted(b"".join(texts))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_members_of_one_name_are_both_read(
    tmp_path: Path, write: Write, texts_of: Texts
) -> None:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for i in range(4):
            archive.writestr(f"{'train' if i else 'test'}/a.txt", b"text %d" % i)
    source = write({"x.zip": memory.getvalue()})
    shards = prepare(DataConfig("text", tmp_path / "shards", str(source)), workers=1)
    assert shards.split("train").tokens.tobytes() == b"text 1text 2text 3"


REPORT = {
    "a.txt": b"a",
    "b.TXT": b"b",
    "c.txt": b"c",
    "d.jsonl.gz": gzip.compress(LINES),
    "._a.txt": b"\0\0\0",
    ".ipynb_checkpoints/a.txt": b"no",
    "__MACOSX/._b.txt": b"\0",
    "e.pdf": b"%PDF-1.7",
    "sub/f.PDF": b"%PDF-1.7",
    "README": b"no",
    "x.zip": zipped({"g.txt": b"g", "h.jpg": b"", "__MACOSX/._g.txt": b"", "i/.h.txt": b""}),
}


def test_what_is_read_and_passed_over_is_told_by_suffix(
    write: Write, texts_of: Texts, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write(REPORT)
    (source / "loop").symlink_to(source)
    (source / "gone.txt").symlink_to(source / "nowhere")
    os.mkfifo(source / "pipe.txt")
    found = texts_of(source)
    assert len(found) == 6
    assert (
        f"{source}: reading 4 .txt, 1 .jsonl.gz, passed over 5 hidden, 2 .pdf, 1 .jpg, "
        "1 broken link, 1 device or pipe, 1 folder that another name leads to, 1 without suffix\n"
    ) in capsys.readouterr().err


def test_links_are_followed(write: Write, texts_of: Texts, tmp_path: Path) -> None:
    source = write({f"{i}.txt": b"here" for i in range(3)})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_bytes(b"there")
    (source / "folder").symlink_to(tmp_path / "elsewhere")
    (source / "link.txt").symlink_to(source / "folder" / "a.txt")
    assert sorted(texts_of(source).values()) == [b"here"] * 3 + [b"there"] * 2


def test_names_that_are_no_utf8_are_readable(write: Write, texts_of: Texts) -> None:
    source = write({f"{i}.txt": b"x" for i in range(3)})
    (source / os.fsdecode(b"caf\xe9.txt")).write_bytes(b"coffee")
    (source / "two\nlines\x1b.txt").write_bytes(b"lines")
    found = texts_of(source)
    assert (found["caf\\xe9.txt"], found["two\\x0alines\\x1b.txt"]) == (b"coffee", b"lines")
    whole = texts_of(source / os.fsdecode(b"caf\xe9.txt"))
    assert "".join(whole).startswith("caf\\xe9.txt[")


def test_names_of_members_lead_nowhere(write: Write, texts_of: Texts, tmp_path: Path) -> None:
    names = ("../../evil.txt", "/etc/evil.txt", "a/../../../evil.txt", "x\\..\\evil.txt")
    files = {name: b"text of " + name.encode() for name in names}
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = 0o120777 << 16
    memory = io.BytesIO(zipped(files))
    with zipfile.ZipFile(memory, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    packed = io.BytesIO(tarred(files))
    with tarfile.open(fileobj=packed, mode="a") as archive:
        member = tarfile.TarInfo("link.txt")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)
    source = write({"x.zip": memory.getvalue(), "x.tar": packed.getvalue()})
    found = texts_of(source)
    assert sorted(found.values()) == sorted([*files.values()] * 2)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_folder_named_as_a_file_is_walked_and_an_empty_text_is_a_document(
    write: Write, texts_of: Texts
) -> None:
    texts = {"train/a.txt/x.txt": b"x", "train/b.txt": b"", "train/c.txt": b"c"}
    source = write(texts | {"train/d.txt.gz": gzip.compress(b""), "train/e.html": b"<p>"})
    assert texts_of(source) == texts | {"train/d.txt.gz": b"", "train/e.html": b""}
