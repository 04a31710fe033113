"""Finished parts -> the files of a shards folder, with their counts and hashes."""

import json
import platform
from array import array
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from data.common.files import hash_file
from data.common.integrity import CHANGED, write_sealed
from data.common.progress import Progress
from data.common.say import say, warn
from data.common.schema import as_record
from data.corpora.checksums import NOT_LISTED
from data.documents import SPLITS, Source
from data.duplicates import ANEW, find_duplicates, hash_of_texts, tell
from data.encode import CHECKED, Encoder
from data.manifest import FORMAT, MANIFEST, DuplicateFacts, Manifest, content_hash
from data.options import DataConfig
from data.split_files import DOCUMENT_DTYPE, file_names
from data.tokenizers.registry import HuggingFaceTokenizer, Tokenizer

COPY_BYTES = 4 << 20


def assemble(
    config: DataConfig,
    source: Source,
    encoder: Encoder,
    folder: Path,
    source_hash: str,
    dropped: DuplicateFacts | None = None,
) -> None:
    """Write all files of the shards into `folder`, the manifest last.

    source_hash: of the files that the source was read from; dropped: what was left out of training.
    ValueError when the source has no text at all.
    """
    (folder / "vocabulary").mkdir(parents=True)
    vocabulary = encoder.vocabulary
    vocabulary.save(folder / "vocabulary")
    splits, digests = {}, {}
    total = sum(path.stat().st_size for path in encoder.folder.glob("*.tokens"))
    with Progress("join", total, "B", scale=True) as progress:
        for split in SPLITS:
            tokens_file, documents_file, names_file = (folder / name for name in file_names(split))
            documents, digests[split] = index_documents(encoder, split, names_file)
            tokens = int(documents["tokens"].sum())
            if tokens == 0:
                names_file.unlink()
                continue
            with documents_file.open("wb") as target:
                write_header(target, documents.dtype, len(documents))
                target.write(documents.data)
            with tokens_file.open("wb") as target:
                write_header(target, vocabulary.dtype, tokens)
                join_tokens(encoder, split, target, progress)
            splits[split] = describe_split(split, documents, folder)
    if not splits:
        raise ValueError(f"{config.source or config.corpus} holds no text")
    duplicates = find_duplicates(source, lambda index: encoder.finished(index).documents).facts
    if dropped is not None:
        gone = {"dropped": dropped.held_out, "examples": dropped.examples}
        duplicates = duplicates.model_copy(update=gone)
    tell(duplicates)
    if source.facts.get("hub") is not None:
        # There are no files to hash.
        source_hash = hash_of_texts(encoder.documents())
    corpus = compare_with_official(source, splits, digests, vocabulary)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "corpus": corpus,
        "unit": source.unit,
        "options": config.content(),
        "source": source.facts | checked(source, encoder) | {"sha256": source_hash},
        "splits": splits,
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "vocabulary": {"kind": vocabulary.kind, "size": vocabulary.size, "hash": vocabulary.hash},
        "duplicates": duplicates.model_dump(mode="json"),
    }
    if vocabulary.kind in CHECKED:
        # Not in the splits' facts, which are hashed as they were before this was noted.
        manifest["lossless"] = lossless(encoder, list(splits))
        if isinstance(vocabulary, HuggingFaceTokenizer):
            manifest["unit"] = unit_of(source, vocabulary, manifest["lossless"])
    manifest["hash"] = content_hash(manifest)
    as_record(Manifest, manifest)
    write_sealed(folder / MANIFEST, manifest)


def unit_of(source: Source, vocabulary: HuggingFaceTokenizer, lossless: dict[str, bool]) -> str:
    """The unit of scores with somebody's tokenizer; tells why it is not bits per byte."""
    lossy = [split for split, exact in lossless.items() if not exact]
    if not lossy or source.unit != "bits_per_byte":
        return source.unit
    why = "; ".join(vocabulary.reasons) or "its tokens do not spell the text"
    say(
        f"the tokenizer does not give the text of {' and '.join(lossy)} back ({why}): scores are "
        "told by the word, and there are no bits per byte"
    )
    return "word_perplexity"


def checked(source: Source, encoder: Encoder) -> dict[str, Any]:
    """What the manifest says of a list of checksums, with how some texts differ; tells of these.

    ValueError for a list that has none of the texts.
    """
    if "checksums" not in source.facts:
        return {}
    texts: dict[str, str | None] = {}
    for record in encoder.documents():
        differs = record.details.get("differs")
        texts[f"{record.name} ({record.split})"] = None if differs is None else str(differs)
    differ = {name: how for name, how in texts.items() if how}
    if all(how == NOT_LISTED for how in texts.values()):
        raise ValueError("checksums lists none of the books: give the list of these books")
    for name, how in differ.items():
        warn(f"{name} {how}")
    return {"checksums": source.facts["checksums"] | {"texts": len(texts), "differ": differ}}


def index_documents(encoder: Encoder, split: str, names_file: Path) -> tuple[np.ndarray, str]:
    """Write the split's names; return its document index and the digest of its texts.

    The index is of DOCUMENT_DTYPE; the digest is SHA-256 over "NAME SHA-256" lines, sorted.
    """
    tokens, size, words = array("q"), array("q"), array("q")
    texts: list[str] = []
    with names_file.open("w", encoding="utf-8") as names:
        for record in encoder.documents():
            if record.split != split:
                continue
            if record.begins:
                names.write(json.dumps(record.details, sort_keys=True) + "\n")
                for column in (tokens, size, words):
                    column.append(0)
            tokens[-1] += record.tokens
            size[-1] += record.bytes
            words[-1] += record.words
            if "sha256" in record.details:
                texts.append(f"{record.name} {record.details['sha256']}\n")
    documents = np.zeros(len(tokens), dtype=DOCUMENT_DTYPE)
    for name, column in (("tokens", tokens), ("bytes", size), ("words", words)):
        documents[name] = column
    documents["offset"] = np.cumsum(documents["tokens"]) - documents["tokens"]
    return documents, sha256("".join(sorted(texts)).encode()).hexdigest()


def lossless(encoder: Encoder, splits: list[str]) -> dict[str, bool]:
    """Of each split whether its tokens give the text back."""
    exact = dict.fromkeys(splits, True)
    for record in encoder.documents():
        # A split without a token is not there.
        if record.split in exact:
            exact[record.split] &= record.exact
    return exact


def write_header(target: BinaryIO, dtype: np.dtype[Any], length: int) -> None:
    """Begin a .npy file of one dimension."""
    description = np.lib.format.dtype_to_descr(dtype)
    header = {"descr": description, "fortran_order": False, "shape": (length,)}
    np.lib.format.write_array_header_1_0(target, header)


def join_tokens(encoder: Encoder, split: str, target: BinaryIO, progress: Progress) -> None:
    """Append the parts' raw ids; ValueError for those that have changed since they were written."""
    for index in range(encoder.parts):
        path, digest = encoder.tokens(index, split), sha256()
        expected = encoder.finished(index).files.get(split)
        if expected is None:
            continue
        with path.open("rb") as part:
            while block := part.read(COPY_BYTES):
                digest.update(block)
                target.write(block)
                progress.update(len(block))
        if digest.hexdigest() != expected:
            raise ValueError(f"{path} {CHANGED}: it does not match its hash; {ANEW}")


def describe_split(split: str, documents: np.ndarray, folder: Path) -> dict[str, Any]:
    """The manifest's entry of a split: counts, and size and SHA-256 of each file."""
    files = {}
    for name in file_names(split):
        path = folder / name
        files[name] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    return {
        "documents": len(documents),
        **{name: int(documents[name].sum()) for name in ("tokens", "bytes", "words")},
        "denominator_words": None,
        "files": files,
    }


def compare_with_official(
    source: Source, splits: dict[str, Any], digests: dict[str, str], vocabulary: Tokenizer
) -> str:
    """Give full official splits their denominators; return the corpus's honest name.

    A split is the official one if it has all its texts, or exactly as many words: copies differ in
    their line ends. One that is not is reported on stderr, and the name then ends in "-part".
    """
    official = source.official
    if official is None:
        return source.corpus
    mismatches = []
    for split, words in official.words.items():
        facts = splits.get(split)
        if facts is None:
            mismatches.append(f"{split} is missing")
        elif facts["words"] == words or digests[split] == (official.digests or {}).get(split):
            facts["denominator_words"] = words
        else:
            mismatches.append(f"{split} has {facts['words']:,} words, not {words:,}")
    if vocabulary.kind == "words" and official.vocabulary not in (None, vocabulary.size):
        mismatches.append(f"there are {vocabulary.size:,} word types, not {official.vocabulary:,}")
    for mismatch in mismatches:
        say(f"not the full {source.corpus}: {mismatch}")
    return f"{source.corpus}-part" if mismatches else source.corpus
