"""Opening shards: what is there, and what is said when something is not."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import split_files
from data.common import integrity, remembering
from data.manifest import content_hash
from data.prepare import DataConfig, prepare
from data.shards import MANIFEST, open_shards
from tests.damage import flip, recount, rewrite


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards of two splits."""
    for split in ("train", "test"):
        (tmp_path / "text" / split).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "text" / split / f"{name}.txt").write_text(f"a text for {split}\n" * 50)
    prepare(DataConfig("text", tmp_path / "shards", str(tmp_path / "text"), "words"), workers=1)
    return tmp_path / "shards"


def test_tokens_are_memory_mapped_plain_npy(folder: Path) -> None:
    tokens = open_shards(folder).split("train").tokens
    assert isinstance(tokens, np.memmap)
    assert tokens.dtype == np.uint8
    assert np.array_equal(tokens, np.load(folder / "train.tokens.npy"))
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_an_unknown_split_names_the_known_ones(folder: Path) -> None:
    with pytest.raises(ValueError, match="no split 'validation': use train, test"):
        open_shards(folder).split("validation")


def test_a_folder_without_shards_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"holds no shards; make them with python -m data\.prepare"
    ):
        open_shards(tmp_path)


def test_truncated_and_missing_files_are_found_at_once(folder: Path) -> None:
    path = folder / "train.tokens.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    with pytest.raises(ValueError, match=r"train\.tokens\.npy has [\d,]+ bytes instead of [\d,]+"):
        open_shards(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"train\.tokens\.npy is missing"):
        open_shards(folder)


FILES = [
    "manifest.json",
    "train.tokens.npy",
    "train.documents.npy",
    "train.names.jsonl",
    "test.tokens.npy",
    "vocabulary/vocabulary.json",
    "vocabulary/words.tsv",
]


def used(folder: Path) -> None:
    """Use all that a shards folder has."""
    shards = open_shards(folder)
    for name in shards.splits:
        split = shards.split(name)
        assert len(split.tokens) + len(split.documents) + len(split.names) > 0


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_is_found_where_the_file_is_used(folder: Path, name: str) -> None:
    file, rng = folder / name, random.Random(name)
    size = file.stat().st_size
    for half in (0, 1, 1):
        # Digits and letters: what else a JSON file has may be white space.
        places = [place for place in range(size) if name[-4:] != "json" or is_word(file, place)]
        place = rng.choice(places[half * len(places) // 2 :][: len(places) // 2])
        whole = flip(file, 8 * place + rng.randrange(8))
        with pytest.raises(ValueError, match=r"prepare the shards again|damaged|format") as error:
            used(folder)
        assert str(folder) in str(error.value)
        file.write_bytes(whole)
    used(folder)


def is_word(file: Path, place: int) -> bool:
    return file.read_bytes()[place : place + 1].isalnum()


def test_large_tokens_are_hashed_once_on_a_machine_or_when_that_is_asked(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembering, "SMALL", 10)
    monkeypatch.setattr(remembering, "SETTLED_S", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    looks = []
    original = split_files.see_tokens
    monkeypatch.setattr(
        split_files, "see_tokens", lambda *a: (looks.append(a[0].name), original(*a))[1]
    )
    used(folder)
    used(folder)
    assert looks == ["train.tokens.npy", "test.tokens.npy"]
    open_shards(folder, verify=True)
    assert looks[2:] == looks[:2]
    flip(folder / "test.tokens.npy", 8 * 200)
    with pytest.raises(ValueError, match=r"test\.tokens\.npy has changed since it was written"):
        used(folder)


def test_an_altered_manifest_is_found_at_once(folder: Path) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    rewrite(path, format=0)
    with pytest.raises(ValueError, match="of another format"):
        open_shards(folder)
    manifest["splits"]["train"]["bytes"] += 1
    rewrite(path, **manifest)
    with pytest.raises(ValueError, match="does not match its hash"):
        open_shards(folder)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        open_shards(folder)


WRONG: dict[str, list[Any]] = {
    "format": [None, "1", 2, True],
    "corpus": [None, 3, []],
    "unit": [None, "bits", 3],
    "options": [None, [], 3],
    "source": [None, {}, {"sha256": "x"}, {"sha256": 3}, []],
    "splits": [None, {}, [], {"train": {}}, {"other": {}}],
    "versions": [None, {"numpy": 3}],
    "vocabulary": [None, {}, {"kind": "words", "size": 0, "hash": "0" * 64}],
    "hash": [None, "x", 3],
    "unheard_of": [1],
}
IN_SPLIT = {
    "documents": [None, -1, "1", 2**63],
    "tokens": [None, 0, 1.5],
    "bytes": [None, -1],
    "words": [None, [], True],
    "denominator_words": ["x", 0],
    "files": [None, {}, [], {"train.tokens.npy": {"bytes": 1, "sha256": "0" * 64}}],
    "unheard_of": [1],
}


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in WRONG.items() for v in vs])
def test_every_field_of_a_manifest_is_checked(folder: Path, key: str, value: Any) -> None:
    rewrite(folder / MANIFEST, **{key: value})
    with pytest.raises(ValueError, match="prepare the shards again"):
        open_shards(folder)


@pytest.mark.parametrize(("key", "value"), [(k, v) for k, vs in IN_SPLIT.items() for v in vs])
def test_every_field_of_a_split_is_checked(folder: Path, key: str, value: Any) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    split = manifest["splits"]["train"] | {key: value}
    manifest["splits"]["train"] = {k: v for k, v in split.items() if (k, v) != (key, None)}
    rewrite(folder / MANIFEST, splits=manifest["splits"], hash=content_hash(manifest))
    with pytest.raises(ValueError, match="prepare the shards again"):
        open_shards(folder)


def test_shards_without_hashes_of_their_records_are_read(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integrity, "_said", set())
    for path in (folder / MANIFEST, folder / "vocabulary" / "vocabulary.json"):
        record = json.loads(path.read_text())
        del record["sha256"]
        record.pop("files", None)
        path.write_text(json.dumps(record))
    used(folder)
    assert capsys.readouterr().err.count("is read unchecked") == 1


@pytest.mark.parametrize(
    ("tokens", "complaint"),
    [
        (lambda t: t.astype(np.uint16), r"holds uint16 \[\d+\], not uint8"),
        (lambda t: t.astype(np.int8), "holds int8"),
        (lambda t: t.astype(np.float32), "holds float32"),
        (lambda t: t[:-1], "holds uint8"),
        (lambda t: t[None], r"holds uint8 \[1, \d+\]"),
        (lambda t: np.array([*t[:-1], 6], np.uint8), "has the id 6, and its vocabulary has only 6"),
        (lambda t: np.array([255, *t[1:]], np.uint8), "has the id 255"),
        (lambda t: np.array([{}, *t[1:]], object), "cannot be read as an array"),
    ],
)
def test_tokens_that_are_none_of_the_vocabulary_are_refused(
    folder: Path, tokens: Callable[[np.ndarray], np.ndarray], complaint: str
) -> None:
    path = folder / "train.tokens.npy"
    np.save(path, tokens(np.load(path)), allow_pickle=True)
    recount(folder)
    with pytest.raises(ValueError, match=rf"train\.tokens\.npy {complaint}"):
        used(folder)


def put(column: str, values: list[int]) -> Callable[[np.ndarray], np.ndarray]:
    def change(documents: np.ndarray) -> np.ndarray:
        documents[column] = values
        return documents

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (put("offset", [0, 0]), "document 2 does not begin where the one before it ends"),
        (put("offset", [250, 0]), "its first document does not begin at 0"),
        (put("offset", [0, 10**9]), "document 2 does not begin"),
        (put("offset", [0, -250]), "numbers below 0"),
        (put("tokens", [500, -100]), "numbers below 0"),
        (put("tokens", [2**62, 2**62]), "document 2 does not begin"),
        (put("tokens", [250, 100]), "it counts 350 tokens, and the split has 500"),
        (put("bytes", [0, 0]), "it counts 0 bytes"),
        (put("words", [1, 1]), "it counts 2 words"),
        (lambda d: d[:1], r"holds .* \[1\], not"),
        (lambda d: d.astype([(n, ">i8") for n in d.dtype.names]), "holds"),
        (lambda d: d["offset"].copy(), "holds int64"),
    ],
)
def test_an_index_that_is_none_is_refused_at_once(
    folder: Path, change: Callable[[np.ndarray], np.ndarray], complaint: str
) -> None:
    path = folder / "train.documents.npy"
    documents = np.load(path)
    assert documents["tokens"].tolist() == [250, 250]
    np.save(path, change(documents))
    recount(folder)
    with pytest.raises(ValueError, match=rf"train\.documents\.npy .*{complaint}"):
        open_shards(folder)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        (b"", "names 0 documents, and the split has 2"),
        (b'{"name": "a"}\n', "names 1 documents"),
        (b'{"name": "a"}\n' * 3, "names 3 documents"),
        (b'{"name": "a"}\n{"name"\n', r", line 2: "),
        (b'{"name": "a"}\n{"title": "b"}\n', r", line 2: name is missing"),
        (b'{"name": "a"}\n{"name": 3}\n', r", line 2: name should be a valid string"),
        (b'{"name": "a"}\n["b"]\n', r", line 2: "),
    ],
)
def test_names_that_are_not_one_a_document_are_refused(
    folder: Path, lines: bytes, complaint: str
) -> None:
    (folder / "train.names.jsonl").write_bytes(lines)
    recount(folder)
    with pytest.raises(ValueError, match=rf"train\.names\.jsonl.*{complaint}.*prepare"):
        used(folder)


def test_a_vocabulary_of_another_build_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text" / "train" / "a.txt").write_text("other words\n")
    config = DataConfig("text", tmp_path / "other", str(tmp_path / "text"), "words")
    prepare(config, workers=1)
    for path in (tmp_path / "other" / "vocabulary").iterdir():
        (folder / "vocabulary" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="belongs to another build"):
        open_shards(folder)
