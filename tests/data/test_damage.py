"""What a build leaves for a later call is not used where a bit of it has changed."""

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

from data import prepare as program
from data.prepare import DataConfig, prepare
from tests.damage import flip, rewrite


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two files in each split."""
    for split in ("train", "validation", "test"):
        (tmp_path / "source" / split).mkdir(parents=True)
        for number in range(2):
            text = f"text {number} of {split}\n" * 20
            (tmp_path / "source" / split / f"{number}.txt").write_text(text)
    return tmp_path / "source"


def test_a_flipped_bit_of_what_an_interrupted_build_left_is_not_used(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A build that was stopped before its last step; the next call begins anew."""
    config = DataConfig("text", tmp_path / "shards", str(corpus))

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    for suffix in ("json", "tokens"):
        with monkeypatch.context() as patched:
            patched.setattr(program, "assemble", stop)
            with pytest.raises(KeyboardInterrupt):
                prepare(config, workers=1)
        part = max(tmp_path.glob(f"shards.building/*/parts/*.{suffix}"))
        digit = re.search(rb"[0-9a-z]", part.read_bytes()[part.stat().st_size // 2 :])
        assert digit
        flip(part, 8 * (part.stat().st_size // 2 + digit.start()))
        with pytest.raises(ValueError, match=rf"{part.name} has changed .* begins anew"):
            prepare(config, workers=1)
    assert prepare(config, workers=1).splits


@pytest.mark.parametrize(
    "change",
    [
        {"files": None},
        {"files": {}},
        {"files": [{"name": "a", "bytes": 1, "changed": 1}]},
        {"files": [{"name": "a", "bytes": "1", "changed": 1, "sha256": "0" * 64}]},
        {"files": [{"name": "a", "bytes": 1, "changed": 1, "sha256": "0" * 63}]},
        {"files": [{"name": "a", "bytes": 1, "changed": 1, "sha256": "0" * 64}]},
        {"more": 1},
    ],
)
def test_a_record_of_the_source_that_is_not_that_of_the_build_is_refused(
    tmp_path: Path, corpus: Path, change: dict[str, Any]
) -> None:
    config = DataConfig("text", tmp_path / "shards", str(corpus))
    prepare(config, workers=1)
    rewrite(tmp_path / "shards" / "source.json", **change)
    with pytest.raises(ValueError, match=r"source\.json.*prepare the shards again"):
        prepare(config, workers=1)


def test_a_flipped_bit_of_the_record_of_the_source_is_found(tmp_path: Path, corpus: Path) -> None:
    config = DataConfig("text", tmp_path / "shards", str(corpus))
    prepare(config, workers=1)
    file = tmp_path / "shards" / "source.json"
    text = file.read_text()
    for place in random.sample([found.start() for found in re.finditer(r"\d", text)], 10):
        whole = flip(file, 8 * place)
        with pytest.raises(ValueError, match=r"source\.json.* prepare the shards again"):
            prepare(config, workers=1)
        file.write_bytes(whole)
    # As it was written before it had a hash.
    file.write_text(json.dumps(json.loads(text)["files"]))
    prepare(config, workers=1)
    file.unlink()
    with pytest.raises(ValueError, match=r"source\.json is missing; prepare the shards again"):
        prepare(config, workers=1)
