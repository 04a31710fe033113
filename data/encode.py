"""Parts -> token files: what every worker does, independently and restartably.

A finished part is `<index>.json`, which lists its documents, and one raw file of ids a split.
The JSON is written last: where it is, the part is whole.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from data.common.files import atomic_path
from data.common.integrity import write_sealed
from data.common.schema import Count, Record, Sha256, read_record
from data.documents import Block, Document, Part, complaint
from data.duplicates import ANEW, Run, text_hash
from data.manifest import SplitName
from data.tokenizers.registry import Tokenizer, WordCounter

LINE_LIMIT = 16 << 20
CHECKED = ("words", "hf")
"""Kinds of vocabulary whose tokens may not give a text back: each block is decoded again."""
PARTS_FORMAT = 5
"""Of what an interrupted build leaves, and of how texts are read; one of another begins anew."""


class PartDocument(Run):
    """A document, or the run of it that one part holds, with what was found in it."""

    tokens: Count
    words: Count
    exact: bool
    """Whether the tokens give the text back."""


class PartRecord(Record):
    """The JSON of a finished part."""

    documents: list[PartDocument]
    files: dict[SplitName, Sha256]
    """Hash of each split's raw ids."""


@dataclass(frozen=True)
class Encoder:
    """What is the same for all parts of a build; picklable.

    words: see Source; digests: hash each document, none of which may run over several parts;
    folder: of the finished parts; parts: how many they will be.
    """

    vocabulary: Tokenizer
    words: Literal["spaces", "spaces and lines", "none"]
    digests: bool
    folder: Path
    parts: int

    def done(self, index: int) -> Path:
        """The file whose presence says that a part is finished."""
        return self.folder / f"{index:06d}.json"

    def tokens(self, index: int, split: str) -> Path:
        """The raw ids of one split of a part."""
        return self.folder / f"{index:06d}.{split}.tokens"

    def finished(self, index: int) -> PartRecord:
        """What there is to know of a finished part; ValueError if it has changed since."""
        return read_record(PartRecord, self.done(index), ANEW)

    def documents(self) -> Iterator[PartDocument]:
        """What all parts, which are finished, hold of documents."""
        for index in range(self.parts):
            yield from self.finished(index).documents

    def encode(self, index: int, part: Part) -> int:
        """Write a part's files; return the bytes of its text.

        ValueError for text that the vocabulary cannot hold or that has not the SHA-256 it should.
        """
        tallies: list[Tally] = []
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            digests = {}
            for block in self._blocks(part):
                split = block.document.split
                if split not in files:
                    path = stack.enter_context(atomic_path(self.tokens(index, split)))
                    files[split] = stack.enter_context(path.open("wb"))
                    digests[split] = sha256()
                if block.begins or not tallies:
                    tallies.append(Tally(block, self.words, self.digests))
                with naming_text(part, block.document, tallies[-1].bytes):
                    ids = self.vocabulary.encode(block.data)
                # Not `tofile`, whose error on a full disk does not say that it is full.
                files[split].write(ids.data)
                digests[split].update(ids.data)
                tallies[-1].add(block.data, len(ids), self._exact(block.data, ids))
            # Before any file is in its place: a text may not be what it must.
            documents = [tally.record() for tally in tallies]
            for file in files.values():
                file.flush()
        record = {
            "documents": documents,
            "files": {split: digest.hexdigest() for split, digest in digests.items()},
        }
        write_sealed(self.done(index), record)
        return sum(tally.bytes for tally in tallies)

    def _exact(self, text: bytes, ids: np.ndarray) -> bool:
        """Whether ids give a text back; bytes and SentencePiece's do by construction."""
        kind = self.vocabulary.kind
        return kind != "mulaw" and (kind not in CHECKED or self.vocabulary.decode(ids) == text)

    def _blocks(self, part: Part) -> Iterator[Block]:
        """The part's blocks, cut where the vocabulary's tokens do not depend on it."""
        free = self.vocabulary.kind in ("bytes", "mulaw")
        return part.read() if free else whole_lines(part.read(), self.vocabulary.cut)


@contextmanager
def naming_text(part: Part, document: Document, position: int) -> Iterator[None]:
    """Turn a UnicodeDecodeError in bytes from `position` of what a part holds of a document into a
    sentence about it.
    """
    try:
        yield
    except UnicodeDecodeError as error:
        line = part.line_of(document, position + error.start)
        raise ValueError(
            f"{document.name}, line {line:,} {complaint(error.object)}, or use the vocabulary bytes"
        ) from error


class Tally:
    """Counts of a document, or of the run of it that one part holds."""

    def __init__(self, block: Block, words: str, digest: bool) -> None:
        self.document: Document = block.document
        self.begins = block.begins
        self.tokens = self.bytes = self.words = 0
        self._how = words
        self._counter = WordCounter()
        self.exact = True
        self._text = sha256()
        self._digest = BookDigest() if digest else None

    def add(self, data: bytes, tokens: int, exact: bool) -> None:
        """Count a block and the tokens that it became; exact: that give it back."""
        self.tokens += tokens
        self.exact &= exact
        self._text.update(data)
        self.bytes += len(data)
        if self._how != "none":
            self.words += self._counter.count(data)
        if self._how == "spaces and lines":
            self.words += data.count(b"\n")
        if self._digest:
            self._digest.update(data)

    def record(self) -> dict[str, Any]:
        """The entry in the part's list; ValueError if the text must have another hash."""
        details = {"name": self.document.name, **self.document.details}
        if self._digest:
            details["sha256"] = self._digest.hex()
            expected = self.document.expected
            differs = expected and expected.difference(details["sha256"], self._digest.bytes)
            if expected and differs and expected.required:
                raise ValueError(
                    f"{self.document.name} ({self.document.split}) {differs}: get it again, or go "
                    "on with --checksums-mismatch warn"
                )
            if differs:
                details["differs"] = differs
        return {
            "split": self.document.split,
            "begins": self.begins,
            "details": details,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "words": self.words,
            "exact": self.exact,
            "text": text_hash(self._text),
        }


class BookDigest:
    """SHA-256 of a text as the official files have it, with CRLF at the end of its lines.

    Parquet copies were read in Python's text mode and have LF; the digest is that of the original.
    """

    def __init__(self) -> None:
        self._hash = sha256()
        self._crlf: bool | None = None
        self.bytes = 0

    def update(self, data: bytes) -> None:
        """Add the next block."""
        if self._crlf is None and b"\n" in data:
            self._crlf = b"\r\n" in data
        original = data if self._crlf else data.replace(b"\n", b"\r\n")
        self._hash.update(original)
        self.bytes += len(original)

    def hex(self) -> str:
        """The digest so far."""
        return self._hash.hexdigest()


def after_line(text: bytes) -> int:
    """Where the last whole line of a text ends."""
    return text.rfind(b"\n") + 1


def whole_lines(
    blocks: Iterator[Block], cut: Callable[[bytes], int] = after_line
) -> Iterator[Block]:
    """Move each block's unfinished last line into the document's next block.

    cut: where a text may end, if not at a line end. ValueError for a line longer than LINE_LIMIT:
    it would have to be held in memory whole.
    """
    waiting: Block | None = None
    for block in blocks:
        if waiting is not None and not block.begins:
            block = Block(block.document, waiting.data + block.data, waiting.begins)
        elif waiting is not None:
            yield waiting
        waiting = None
        end = cut(block.data)
        if end:
            yield Block(block.document, block.data[:end], block.begins)
        if end < len(block.data) or not end:
            waiting = Block(block.document, block.data[end:], block.begins and not end)
        if waiting is not None and len(waiting.data) > LINE_LIMIT:
            what = "a line" if cut is after_line else "a stretch that cannot be parted"
            raise ValueError(
                f"{block.document.name} has {what} of over {LINE_LIMIT >> 20} MiB, too long for "
                "this vocabulary: break its lines, or use the vocabulary bytes"
            )
    if waiting is not None:
        yield waiting
