"""Cutting documents into parts, blocks and lines loses nothing and depends on nothing else."""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import documents
from data.documents import Block, Document, Part, Piece, Source, file_parts
from data.encode import BookDigest, whole_lines
from data.learn import count_part, sample_lines

TEXT = st.binary(max_size=60).map(lambda data: data.replace(b"\x00", b"\n"))


def joined(blocks: Iterator[Block]) -> list[tuple[str, bytes]]:
    """Name and text of each document."""
    found: list[tuple[str, bytes]] = []
    for block in blocks:
        if block.begins:
            found.append((block.document.name, b""))
        name, text = found[-1]
        assert name == block.document.name
        found[-1] = (name, text + block.data)
    return found


@given(texts=st.lists(TEXT, max_size=5), part=st.integers(1, 40), block=st.integers(1, 20))
def test_parts_hold_every_document_in_order_and_begin_at_lines(
    tmp_path_factory: pytest.TempPathFactory, texts: list[bytes], part: int, block: int
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    pieces = []
    for number, text in enumerate(texts):
        path = folder / str(number)
        path.write_bytes(text)
        pieces.append(Piece(path, 0, len(text), Document("train", str(number))))
    with patch.object(documents, "PART_BYTES", part), patch.object(documents, "BLOCK_BYTES", block):
        parts = file_parts(pieces)
        blocks = [list(each.read()) for each in parts]
    expected = [(str(number), text) for number, text in enumerate(texts)]
    assert joined(block for part in blocks for block in part) == expected
    lined = [line for part in blocks for line in whole_lines(iter(part))]
    assert joined(iter(lined)) == expected
    for before, after in itertools.pairwise(lined):
        # Within a document every block of whole lines ends with one, over parts too.
        assert after.begins or before.data.endswith(b"\n")
    assert sum(part.size for part in parts) == sum(map(len, texts))


@given(text=st.binary(), cuts=st.lists(st.integers(0, 300), max_size=3))
def test_books_with_lf_have_the_digest_of_the_same_with_crlf(text: bytes, cuts: list[int]) -> None:
    lines = text.replace(b"\r", b"")
    digests = set()
    for version in (lines, lines.replace(b"\n", b"\r\n")):
        digest = BookDigest()
        # A block that ends between CR and LF hides no line end: the first block is far longer.
        edges = [0, len(version)] if b"\r\n" in version else sorted({0, *cuts, len(version)})
        for start, end in itertools.pairwise(edges):
            digest.update(version[start:end])
        digests.add(digest.hex())
    assert len(digests) == 1


@dataclass(frozen=True)
class Lines(Part):
    """A part in memory, whose size only reading would tell."""

    text: bytes
    split: str = "train"

    @property
    def size(self) -> None:
        return

    def read(self) -> Iterator[Block]:
        yield Block(Document(self.split, "name"), self.text, True)


def test_only_training_text_makes_the_vocabulary() -> None:
    assert count_part(None, 0, Lines(b"a b a\n"))[b"a"] == 2
    assert count_part(None, 0, Lines(b"a b a\n", "test")) == Counter()
    source = Source("text", "bits_per_byte", (Lines(b"a\r\n\nb\n"), Lines(b"c\n", "test")))
    assert list(sample_lines(source, 10**6)) == ["a", "b"]


def test_a_sample_is_spread_over_the_corpus_and_has_its_size() -> None:
    parts = tuple(Lines(b"".join(b"%03d %06d\n" % (i, j) for j in range(500))) for i in range(40))
    # Of 220,000 bytes: all, most, and shares so small that the text is thinned again and again.
    for size in (300_000, 200_000, 20_000, 2_000):
        sample = list(sample_lines(Source("text", "bits_per_byte", parts), size))
        assert sum(len(line) + 1 for line in sample) == pytest.approx(min(size, 220_000), abs=20)
        counts = Counter(line[:3] for line in sample)
        assert len(counts) == 40
        assert max(counts.values()) - min(counts.values()) <= 3
        assert all(sample.count(line) == 1 for line in sample[:50])


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "book.txt"
    path.write_bytes(b"long text")
    (part,) = file_parts([Piece(path, 0, 9, Document("train", "book"))])
    path.write_bytes(b"long")
    with pytest.raises(ValueError, match=r"book\.txt became shorter"):
        list(part.read())
