"""Whatever is no text is refused by name, in one sentence, and nothing is left behind."""

import bz2
import gzip
import lzma
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from data.prepare import DataConfig, prepare
from tests.data.containers import LINES, epub, parquet, tarred, zipped

Write = Callable[[dict[str, bytes]], Path]
Texts = Callable[..., dict[str, bytes]]

ASCII_PDF = b"%PDF-1.4\n1 0 obj\nendobj\ntrailer\n" * 50
UTF16 = "Ein Text mit Umläuten, größer.\n".encode("utf-16-le") * 20
ENCRYPTED = bytearray(zipped({"a.txt": b"secret text"}))
ENCRYPTED[6] |= 1
ENCRYPTED[ENCRYPTED.index(b"PK\x01\x02") + 8] |= 1
EXOTIC = bytearray(zipped({"a.txt": b"text"}))
EXOTIC[8] = EXOTIC[EXOTIC.index(b"PK\x01\x02") + 10] = 97
CHECKSUM = bytearray(zipped({"a.txt": b"text " * 1000}))
CHECKSUM[CHECKSUM.index(b"PK\x01\x02") + 16] ^= 1
LOCKED = (
    b'<encryption xmlns:e="http://www.w3.org/2001/04/xmlenc#"><e:EncryptedData><e:CipherData>'
    b'<e:CipherReference URI="OPS/t/a.xhtml"/></e:CipherData></e:EncryptedData></encryption>'
)
LAUGHS = (
    b'<!DOCTYPE c [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    b"<container><rootfile full-path='OPS/p.opf'>&b;</rootfile></container>"
)
TAR = tarred({f"{i}.txt": b"text %d" % i * 100 for i in range(9)})

REFUSED: dict[str, tuple[bytes, str]] = {
    # Named or globbed, these are no text, whatever is in them.
    "a.pdf": (ASCII_PDF, r"a\.pdf is not read: convert it to \.txt"),
    "a.PDF.gz": (gzip.compress(ASCII_PDF), "convert it to .txt"),
    "a.docx": (zipped({"word/document.xml": b"<w/>"}), "save it as plain text"),
    "a.rtf": (b"{\\rtf1 text}", "save it as plain text"),
    "a.csv": (b"text\nrow\n", r"write its texts as \.jsonl"),
    "a.mobi": (b"BOOKMOBI", r"convert it to \.epub"),
    "a.wav": (b"RIFF", "corpus audio"),
    "a.pkl": (pickle.dumps("x"), "pickles are never opened"),
    "a.7z": (b"7z", "unpack it"),
    "a.arrow": (b"ARROW1", r"write it as \.parquet"),
    "a.parquet.gz": (gzip.compress(parquet(text=["x"])), r"packed \.parquet file: unpack it"),
    "a.png": (b"text only", "are image/png"),
    "a.mp4": (b"text only", "are video/mp4"),
    "a.xls": (b"text only", "are application/vnd.ms-excel"),
    "noname": (bytes(range(256)), "binary data"),
    "data.bin2": (b"\x7fELF\x02\x01\x01" + bytes(99), "binary data"),
    "latin": ("Größe und Straße für Übung\n".encode("latin-1") * 9, "seems to be in cp1252"),
    "russian": ("Старик медленно шёл по улице.\n".encode("koi8-r") * 9, "seems to be in koi8-r"),
    "few.dat2": (b"text\x01\x02\x03\n" * 9, "binary data"),
    # These say that they are text.
    "nul.txt": (b"text\0" * 100, "is not text|seems to be"),
    "random.txt": (gzip.compress(os.urandom(5000)), "binary data"),
    "wide.txt": (UTF16, "seems to be in utf-16-le"),
    "marked.txt": (b"\xff\xfe" + UTF16, "seems to be in utf-16"),
    "big.txt": ("Text\n".encode("utf-16-be") * 90, "seems to be in utf-16-be"),
    "wider.txt": ("Text\n".encode("utf-32") * 90, "seems to be in utf-32"),
    "chinese.txt": ("\ufeff老人慢慢地走在街上\n".encode("utf-16-le") * 9, "seems to be in utf-16"),
    "wide.txt.gz": (gzip.compress(UTF16), "seems to be in utf-16-le"),
    "wide.jsonl": ('{"text": "a"}\n'.encode("utf-16-le"), "seems to be in utf-16-le"),
    "late.txt": (b"text\n" * 300_000 + b"\0" * 10_000, "binary data"),
    "latin.jsonl": ('{"text": "Größe für Übung"}\n'.encode("latin-1"), "line 1 .*cp1252"),
    "latin.html": ("<p>Größe für alle Übungen".encode("latin-1"), "seems to be in cp1252"),
    "liar.html": (b'<meta charset="utf-99"><p>\xff', "is not in utf-99, as it says"),
    "deep.html": (b"<div>" * 9000, "nested too deeply"),
    # Records.
    "null.jsonl": (b'{"text": "a"}\n\n{"text": null}\n', "line 3 has null in column 'text'"),
    "null.json": (b'[{"text": null}]', "record 1 has null in column 'text'"),
    "null.parquet": (parquet(text=["a", None]), r"row 1 \(from 0\) has null in column 'text'"),
    "list.jsonl": (b'{"text": ["a"]}\n', "line 1 has no text .* but a value of type list"),
    "bytes.parquet": (parquet(text=[b"a"]), r"row 0 \(from 0\) has no text .* of type bytes"),
    "strings.json": (b'["a", "b"]', "record 1 is not a JSON object but a str"),
    "number.json": (b"3", "is not a JSON object but a int"),
    "empty.json": (b"", "is not a JSON object"),
    "column.json": (b'[{"text": "a"}, {"story": "b"}]', "record 2 has no text in column 'text'"),
    "half.jsonl": (b'{"text": "a\\ud83d"}\n', "line 1 is not valid Unicode: character 2"),
    "deep.jsonl": (b'{"a": ' + b"[" * 200_000, "line 1 is nested too deeply"),
    "deep.json": (b'[\n{"a":' + b"[" * 200_000, "nested too deeply"),
    "digits.jsonl": (b'{"n": ' + b"1" * 5000 + b"}\n", "line 1 is not a JSON object: Exceeds"),
    "cut.jsonl": (b'{"text": "a"}\n{"text": "b', "line 2 is not a JSON object"),
    "no.parquet": (b"PAR1 no", "is not a parquet file"),
    "nothing.parquet": (b"", "is not a parquet file"),
    "cut.parquet": (parquet(text=["a"])[:-9], "is not a parquet file"),
    "other.parquet": (parquet(txt=["a"]), "has no column 'text'; its columns are txt"),
    # Packed.
    "cut.txt.gz": (gzip.compress(b"text" * 99)[:-9], r"cut\.txt\.gz is damaged or cut short"),
    "cut.txt.xz": (lzma.compress(b"text" * 99)[:-9], "is damaged or cut short"),
    "cut.txt.bz2": (bz2.compress(b"text" * 99)[:-9], "is damaged or cut short"),
    "cut.txt.zst": (zstandard.compress(b"text" * 99)[:-3], "is damaged or cut short"),
    "cut.jsonl.zst": (zstandard.compress(LINES * 99)[:-3], "is damaged or cut short"),
    "cut.json.gz": (gzip.compress(LINES * 99)[:-9], "is damaged or cut short"),
    "plain.txt.gz": (b"text", "is damaged or cut short"),
    "plain.txt.xz": (b"text", "is damaged or cut short"),
    "plain.txt.bz2": (b"text", "is damaged or cut short"),
    "plain.txt.zst": (b"text", "is damaged or cut short"),
    "empty.txt.gz": (b"", "is damaged or cut short"),
    # Archives.
    "locked.zip": (bytes(ENCRYPTED), r"locked\.zip is encrypted: unpack it with its password"),
    "exotic.zip": (bytes(EXOTIC), r"exotic\.zip is packed in a way not known"),
    "flipped.zip": (bytes(CHECKSUM), r"flipped\.zip is damaged .*CRC"),
    "cut.zip": (zipped({"a.txt": b"a"})[:-10], r"cut\.zip is damaged or cut short"),
    "no.zip": (b"text", r"no\.zip is damaged or cut short"),
    "nested.zip": (zipped({"b.zip": zipped({"a.txt": b"a"})}), r"holds an archive, b\.zip"),
    "nested.tar": (tarred({"b.tar.gz": gzip.compress(TAR)}), r"holds an archive, b\.tar\.gz"),
    "pictures.zip": (zipped({"a.jpg": b"", "b.jpg": b""}), r"holds no text but 2 \.jpg"),
    "one.zip": (zipped({"a.jpg": b"text"}), r"one\.zip/a\.jpg is not read"),
    "none.zip": (zipped({}), "holds no text but no files"),
    "hidden.zip": (zipped({"__MACOSX/a.txt": b"x"}), "holds no text but 1 hidden"),
    "pickles.tar": (
        tarred({f"{i}.{kind}": pickle.dumps(i) for i in range(2) for kind in ("pyd", "pickle")}),
        r"pickles\.tar holds no text but 2 \.pickle, 2 \.pyd",
    ),
    "cut.tar": (TAR[:3000], "is damaged or cut short"),
    "cut2.tar": (TAR[: TAR.index(b"3.txt") + 100], "its end is missing"),
    "cut.tar.gz": (gzip.compress(TAR)[:-20], "is damaged or cut short"),
    "cut.tgz": (gzip.compress(TAR[:3000]), "is damaged or cut short"),
    "head.tar": (TAR.replace(b"3.txt", b"4.txt"), "its end is missing, or a header is damaged"),
    "no.tar": (b"text", "is damaged or cut short"),
    "inside.zip": (
        zipped({"a.txt.gz": gzip.compress(b"a" * 99)[:-9]}),
        "inside.zip/a.txt.gz is dam",
    ),
    # Books.
    "no.epub": (b"text", r"no\.epub is damaged or cut short"),
    "empty.epub": (zipped({}), r"lacks META-INF/container\.xml"),
    "chapter.epub": (zipped({k: v for k, v in epub().items() if "a.x" not in k}), r"lacks OPS/t/a"),
    "locked.epub": (zipped(epub(**{"META-INF/encryption.xml": LOCKED})), "as sold books are"),
    "xml.epub": (zipped(epub(**{"OPS/p.opf": b"<p"})), "is not an EPUB book"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_text_is_refused_by_name(
    tmp_path: Path, write: Write, texts_of: Texts, name: str
) -> None:
    data, message = REFUSED[name]
    source = write({name: data})
    (tmp_path / "one").mkdir()
    for given in (source / name, f"{source}/*"):
        with pytest.raises(ValueError, match=message) as refusal:
            texts_of(given)
        assert "\n" not in str(refusal.value)
        assert Path(name).stem in str(refusal.value)
    assert not list(tmp_path.glob("shards*"))


def test_an_archive_larger_than_the_disk_is_refused_before_it_is_unpacked(
    write: Write, texts_of: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil
    from types import SimpleNamespace

    source = write({"bomb.zip": zipped({"a.txt": b"0" * 100_000})})
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_000))
    with pytest.raises(ValueError, match=r"bomb\.zip would not fit on the disk"):
        texts_of(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "nowhere is not there"),
        ("nowhere/", "is not there"),
        ("nowhere/*.txt", "names no file"),
        ("s3://bucket/x.txt", "s3://bucket/x.txt is on another machine.*copy it here"),
        ("gs://bucket/pg19", "is on another machine"),
        ("https://example.org/a.txt", "is on another machine"),
        ("HTTP://example.org/*.txt", "is on another machine"),
        ("hf://datasets/a/b", "hub:OWNER/NAME"),
        ("file:///tmp/a.txt", "give the path alone, /tmp/a.txt"),
        ("~nobody-of-this-name/x.txt", "a user who is not known here"),
        ("", "is no path"),
        ("a\0b", "is no path"),
        ("/dev/null", "neither a file nor a folder"),
        ("**.txt", "Invalid pattern|names no file"),
    ],
)
@pytest.mark.parametrize("corpus", ["text", "wikitext", "pg19", "audio", "enwik8"])
def test_a_source_that_is_not_there_or_elsewhere_is_told_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str, corpus: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if corpus != "text" and "*" in source and "://" not in source:
        message = "is not there"
    with pytest.raises(ValueError, match=message) as refusal:
        prepare(DataConfig(corpus, tmp_path / "shards", source), workers=1)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_text_says_what_it_has(write: Write, texts_of: Texts) -> None:
    source = write({"a.pdf": b"", "b.pdf": b"", ".c.txt": b"x"})
    with pytest.raises(ValueError, match=r"holds no text but 2 \.pdf, 1 hidden"):
        texts_of(source)
