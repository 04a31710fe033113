"""No split of a corpus comes out empty: what is drawn by hash is drawn again, or cut, if need be.

A hash of names leaves validation or test without a document in four of five corpora of ten.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise

from data.cutting import Bounds, cut_text, require_all_splits
from data.documents import SPLITS, Block, Part, Source
from data.splits import spread


@dataclass(frozen=True)
class MovedPart(Part):
    """A part whose documents are in other splits, by name."""

    part: Part
    splits: Mapping[str, str]

    @property
    def size(self) -> int | None:
        """That of the part."""
        return self.part.size

    def read(self) -> Iterator[Block]:
        """The part's blocks."""
        for block in self.part.read():
            document = block.document
            split = self.splits.get(document.name, "train")
            yield replace(block, document=replace(document, split=split))


@dataclass(frozen=True)
class CutPart(Part):
    """A part whose documents are cut, by name; `position` is where in its document it begins."""

    part: Part
    bounds: Mapping[str, Bounds]
    position: int

    @property
    def size(self) -> int | None:
        """That of the part."""
        return self.part.size

    def read(self) -> Iterator[Block]:
        """The part's blocks, each of one split."""
        position = self.position
        for block in self.part.read():
            position = 0 if block.begins else position
            end = position + len(block.data)
            bounds = self.bounds.get(block.document.name)
            if bounds is None:
                yield block
                continue
            edges = sorted({position, end, *(b for b, _ in bounds.values() if position < b < end)})
            for start, stop in pairwise(edges):
                split, (first, last) = next(
                    item for item in bounds.items() if item[1][0] <= start < item[1][1]
                )
                name = f"{block.document.name}[{first}:{last}]"
                document = replace(block.document, split=split, name=name)
                data = block.data[start - position : stop - position]
                yield Block(document, data, begins=start == first)
            position = end


def with_all_splits(source: Source) -> Source:
    """The same corpus, with text in every split if its splits were drawn by hash.

    Where one is empty, the documents are dealt again as `spread` does; one or two documents are
    each cut 90/5/5 %. Reads as far as to the first text of the last split. ValueError when there
    is too little text to cut; named splits are what they are.
    """
    if not source.drawn:
        return source
    seen: set[str] = set()
    names: dict[str, None] = {}
    for part in source.parts:
        for document, there in part.texts():
            if there:
                seen.add(document.split)
                names[document.name] = None
            if seen == set(SPLITS):
                return source
    if not names:
        return source
    if len(names) < len(SPLITS):
        return with_cuts(source, set(names))
    splits = dict(zip(names, spread(list(names)), strict=True))
    return replace(source, parts=tuple(MovedPart(part, splits) for part in source.parts))


def with_cuts(source: Source, names: set[str]) -> Source:
    """The documents of these names, each cut in three; ValueError if there is too little text."""
    bounds: dict[str, Bounds] = {}
    parts: list[Part] = []
    held: tuple[str, list[bytes]] = "", []

    def close() -> None:
        name, text = held[0], b"".join(held[1])
        if name in names:
            bounds[name] = cut_text(lambda start, end: text[start:end], len(text))

    for part in source.parts:
        parts.append(CutPart(part, bounds, sum(map(len, held[1]))))
        for block in part.read():
            if block.begins:
                close()
                held = block.document.name, []
            held[1].append(block.data)
    close()
    require_all_splits(bounds)
    return replace(source, parts=tuple(parts))
