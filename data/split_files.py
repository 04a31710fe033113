"""The files of a split, opened only as what the manifest says of them.

Ids outside the vocabulary, an index that overlaps or goes backwards, and names that are not one a
document would give wrong numbers or an error far away; so would a file that has changed. Large
files are looked at once on a machine (data/common/remembering.py).
"""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import ConfigDict, JsonValue

from data.common.files import hash_file
from data.common.integrity import CHANGED
from data.common.progress import Progress
from data.common.remembering import SMALL, remembered
from data.common.schema import Count, Record, Sha256, read_lines
from data.manifest import AGAIN, FileFacts, SplitFacts

BLOCK_BYTES = 8 << 20
DOCUMENT_DTYPE = np.dtype(
    [("offset", "<i8"), ("tokens", "<i8"), ("bytes", "<i8"), ("words", "<i8")]
)

Facts = TypeVar("Facts", bound="Seen")


class Seen(Record):
    """What was found in a file."""

    sha256: Sha256


class SeenTokens(Seen):
    """What was found in a file of tokens."""

    largest: Count


class SeenDocuments(Seen):
    """What was found in a document index."""

    fault: str | None
    tokens: int
    bytes: int
    words: int


class SeenNames(Seen):
    """What was found in a file of names."""

    lines: Count


class DocumentDetails(Record):
    """What is known of a document; a corpus adds its own."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, JsonValue]

    name: str
    title: str | None = None
    year: int | str | None = None
    sha256: Sha256 | None = None


def file_names(split: str) -> tuple[str, str, str]:
    """Names of a split's files: tokens, documents, names."""
    return f"{split}.tokens.npy", f"{split}.documents.npy", f"{split}.names.jsonl"


def check_size(path: Path, facts: FileFacts) -> None:
    """ValueError unless the file is there with its size."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; {AGAIN}")
    size = path.stat().st_size
    if size != facts.bytes:
        raise ValueError(f"{path} has {size:,} bytes instead of {facts.bytes:,}; {AGAIN}")


def open_tokens(path: Path, split: SplitFacts, size: int, anew: bool = False) -> np.ndarray:
    """Ids of a split, 1-D, memory-mapped and read-only.

    Args:
        path: the file.
        split: what the manifest says of the split and of the file.
        size: of the vocabulary; decides the type too.
        anew: look at a large file even if this machine knows it.

    Raises:
        ValueError: the file has changed, is of another type or length, or has an id that the
            vocabulary does not have.
    """
    tokens = mapped(path, np.min_scalar_type(size - 1), split.tokens)
    seen = looked_at(path, split, SeenTokens, lambda: see_tokens(path, tokens), anew)
    if seen.largest >= size:
        raise ValueError(
            f"{path} has the id {seen.largest}, and its vocabulary has only {size}; {AGAIN}"
        )
    return tokens


def open_documents(path: Path, split: SplitFacts, anew: bool = False) -> np.ndarray:
    """The document index, memory-mapped; arguments and errors as of `open_tokens`.

    Documents lie one behind the other from the split's first token to its last, and their bytes
    and words are together those of the split.
    """
    documents = mapped(path, DOCUMENT_DTYPE, split.documents)
    seen = looked_at(path, split, SeenDocuments, lambda: see_documents(path, documents), anew)
    fault = seen.fault
    for name in ("tokens", "bytes", "words"):
        has, should = getattr(seen, name), getattr(split, name)
        if fault is None and has != should:
            fault = f"it counts {has:,} {name}, and the split has {should:,}"
    if fault is not None:
        raise ValueError(f"{path} is no index of the split: {fault}; {AGAIN}")
    return documents


def check_names(path: Path, split: SplitFacts, anew: bool = False) -> None:
    """See that there is a line for each document; arguments and errors as of `open_tokens`."""
    seen = looked_at(path, split, SeenNames, lambda: see_names(path), anew)
    if seen.lines != split.documents:
        raise ValueError(
            f"{path} names {seen.lines:,} documents, and the split has {split.documents:,}; {AGAIN}"
        )


def read_names(path: Path) -> list[DocumentDetails]:
    """The documents' details, in order; ValueError for a line that is no such record."""
    return list(read_lines(DocumentDetails, path, AGAIN))


def mapped(path: Path, dtype: np.dtype[Any], length: int) -> np.ndarray:
    """A memory-mapped .npy file of one dimension, which must have this type and length."""
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:
        # numpy passes on whatever Python's parser says of a damaged header.
        raise ValueError(f"{path} cannot be read as an array ({error}); {AGAIN}") from None
    if array.dtype != dtype or array.shape != (length,):
        raise ValueError(
            f"{path} holds {array.dtype} {list(array.shape)}, not {dtype} [{length}]; {AGAIN}"
        )
    return array


def looked_at(
    path: Path, split: SplitFacts, kind: type[Facts], look: Callable[[], Facts], anew: bool
) -> Facts:
    """What is found in a file that must have its hash."""
    seen = look() if anew else remembered(path, kind, look)
    if seen.sha256 != split.files[path.name].sha256:
        raise ValueError(f"{path} {CHANGED}: it does not match its hash; {AGAIN}")
    return seen


def see_tokens(path: Path, tokens: np.ndarray) -> SeenTokens:
    """Hash a file of tokens and find the largest id, in one pass."""
    digest, largest = sha256(), 0
    size = path.stat().st_size
    large = size >= SMALL
    with path.open("rb") as file, Progress(f"check {path.name}", size, "B", True, large) as bar:
        # The header's length is a multiple of 64, so no id is cut.
        digest.update(file.read(size - tokens.nbytes))
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
            largest = max(largest, int(np.frombuffer(block, tokens.dtype).max()))
            bar.update(len(block))
    return SeenTokens(sha256=digest.hexdigest(), largest=largest)


def see_documents(path: Path, documents: np.ndarray) -> SeenDocuments:
    """Hash an index and see whether its documents follow one another."""
    offset, tokens = documents["offset"], documents["tokens"]
    fault = None
    if any((documents[name] < 0).any() for name in DOCUMENT_DTYPE.names or ()):
        fault = "it has numbers below 0"
    elif len(documents) and int(offset[0]) != 0:
        fault = "its first document does not begin at 0"
    elif not np.array_equal(offset[1:], offset[:-1] + tokens[:-1]):
        place = int(np.flatnonzero(offset[1:] != offset[:-1] + tokens[:-1])[0]) + 1
        fault = f"document {place + 1:,} does not begin where the one before it ends"
    # Where no number is below 0, sums that int64 does not hold leave an offset that is.
    sums = {name: int(documents[name].sum()) for name in ("tokens", "bytes", "words")}
    return SeenDocuments(sha256=hash_file(path), fault=fault, **sums)


def see_names(path: Path) -> SeenNames:
    """Hash a file of names and count its lines."""
    digest, lines = sha256(), 0
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            lines += not line.isspace()
    return SeenNames(sha256=digest.hexdigest(), lines=lines)
