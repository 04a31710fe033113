"""Parts -> token files: what every worker does, independently and restartably.

A finished part is `<index>.json`, which lists its documents, and one raw file of ids a split.
The JSON is written last: where it is, the part is whole.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from data.documents import Block, Document, Part
from data.files import atomic_path, write_json
from data.vocab import Vocabulary, WordCounter

LINE_LIMIT = 16 << 20


@dataclass(frozen=True)
class Encoder:
    """What is the same for all parts of a build; picklable.

    lines_are_words: see Source; folder: of the finished parts.
    """

    vocabulary: Vocabulary
    lines_are_words: bool
    folder: Path

    def done(self, index: int) -> Path:
        """The file whose presence says that a part is finished."""
        return self.folder / f"{index:06d}.json"

    def tokens(self, index: int, split: str) -> Path:
        """The raw ids of one split of a part."""
        return self.folder / f"{index:06d}.{split}.tokens"

    def encode(self, index: int, part: Part) -> int:
        """Write a part's files; return its source bytes."""
        records: list[dict[str, Any]] = []
        with ExitStack() as stack:
            files: dict[str, BinaryIO] = {}
            words = WordCounter()
            for block in self._blocks(part):
                document = block.document
                if document.split not in files:
                    path = stack.enter_context(atomic_path(self.tokens(index, document.split)))
                    files[document.split] = stack.enter_context(path.open("wb"))
                if block.begins or not records:
                    words = WordCounter()
                    records.append(new_record(document, block.begins))
                ids = self.vocabulary.encode(block.data)
                ids.tofile(files[document.split])
                record = records[-1]
                record["tokens"] += len(ids)
                record["bytes"] += len(block.data)
                record["words"] += words.count(block.data)
                if self.lines_are_words:
                    record["words"] += block.data.count(b"\n")
            for file in files.values():
                file.flush()
        write_json(self.done(index), records)
        return part.size

    def _blocks(self, part: Part) -> Iterator[Block]:
        """The part's blocks, made of whole lines if the vocabulary needs that."""
        return whole_lines(part.read()) if self.vocabulary.needs_lines else part.read()


def new_record(document: Document, begins: bool) -> dict[str, Any]:
    """A document, or the continuation of one, of which nothing has been encoded yet."""
    return {
        "split": document.split,
        "begins": begins,
        "details": {"name": document.name, **document.details},
        "tokens": 0,
        "bytes": 0,
        "words": 0,
    }


def whole_lines(blocks: Iterator[Block]) -> Iterator[Block]:
    """Move each block's unfinished last line into the document's next block.

    ValueError for a line longer than LINE_LIMIT: it would have to be held in memory whole.
    """
    waiting: Block | None = None
    for block in blocks:
        if waiting is not None and not block.begins:
            block = Block(block.document, waiting.data + block.data, waiting.begins)
        elif waiting is not None:
            yield waiting
        waiting = None
        end = block.data.rfind(b"\n") + 1
        if end:
            yield Block(block.document, block.data[:end], block.begins)
            waiting = Block(block.document, block.data[end:], False) if block.data[end:] else None
        else:
            waiting = block
        if waiting is not None and len(waiting.data) > LINE_LIMIT:
            raise ValueError(
                f"{block.document.name} has a line of over {LINE_LIMIT >> 20} MiB, too long for "
                "this vocabulary: break its lines, or use bytes"
            )
    if waiting is not None:
        yield waiting
