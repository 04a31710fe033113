"""Texts in packed files, archives, tables and books, for the tests of the readers."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile

import pyarrow
import pyarrow.parquet
import zstandard

PACK = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: zstandard.compress(data[:5]) + zstandard.compress(data[5:]),
}
LINES = b'{"text": "one \\u00e9"}\n\n{"text": "two"}\n'


def zipped(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return memory.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return memory.getvalue()


def parquet(**columns: list[object]) -> bytes:
    memory = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), memory)
    return memory.getvalue()


def epub(**more: bytes) -> dict[str, bytes]:
    package = (
        b'<package xmlns="http://www.idpf.org/2007/opf"><manifest>'
        b'<item id="b" href="t/b%20b.xhtml" media-type="application/xhtml+xml"/>'
        b'<item id="a" href="t/a.xhtml" media-type="application/xhtml+xml"/>'
        b'<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>'
        b'</manifest><spine><itemref idref="n"/><itemref idref="a"/><itemref idref="b"/></spine>'
        b"</package>"
    )
    container = (
        b'<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles>'
        b'<rootfile full-path="OPS/p.opf"/></rootfiles></container>'
    )
    return {
        "mimetype": b"application/epub+zip",
        "META-INF/container.xml": container,
        "OPS/p.opf": package,
        "OPS/t/a.xhtml": b"<html><head><title>x</title></head><body><h1>A</h1><p>one</p></body>",
        "OPS/t/b b.xhtml": "<html><body><p>zwölf</p></body></html>".encode(),
        "OPS/nav.xhtml": b"<html><body>Contents</body></html>",
        **more,
    }
