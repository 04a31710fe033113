"""Opening shards: what is there, and what is said when something is not."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.prepare import DataConfig, prepare
from data.shards import MANIFEST, open_shards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Shards of two splits."""
    for split in ("train", "test"):
        (tmp_path / "text" / split).mkdir(parents=True)
        (tmp_path / "text" / split / "a.txt").write_text(f"a text for {split}\n" * 50)
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


def test_altered_files_are_found_by_verifying(folder: Path) -> None:
    path = folder / "test.documents.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    open_shards(folder)
    with pytest.raises(ValueError, match=r"test\.documents\.npy does not match its hash"):
        open_shards(folder, verify=True)


def test_an_altered_manifest_is_found_at_once(folder: Path) -> None:
    path = folder / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["splits"]["train"]["bytes"] += 1
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="does not match its hash"):
        open_shards(folder)
    path.write_text(json.dumps(manifest | {"format": 0}))
    with pytest.raises(ValueError, match="of another format"):
        open_shards(folder)
    path.write_text("{")
    with pytest.raises(ValueError, match="is not valid JSON"):
        open_shards(folder)


def test_a_vocabulary_of_another_build_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text" / "train" / "a.txt").write_text("other words\n")
    config = DataConfig("text", tmp_path / "other", str(tmp_path / "text"), "words")
    prepare(config, workers=1)
    for path in (tmp_path / "other" / "vocabulary").iterdir():
        (folder / "vocabulary" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="belongs to another build"):
        open_shards(folder)
