"""data.prepare: what it builds, and that it builds the same every time."""

from pathlib import Path

import numpy as np

from data.prepare import DataConfig, prepare


def test_shards_hold_the_text_of_a_folder_byte_for_byte(tmp_path: Path) -> None:
    texts = {
        "train/a.txt": b"one two\n",
        "train/b.txt": b"",
        "valid/c.txt": b"\xff",
        "test/d.txt": b"x",
    }
    for name, text in texts.items():
        path = tmp_path / "text" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    shards = prepare(DataConfig("text", tmp_path / "shards", str(tmp_path / "text")), workers=1)
    train = shards.split("train")
    assert train.tokens.tobytes() == b"one two\n"
    assert train.names == ["train/a.txt", "train/b.txt"]
    assert train.documents.tolist() == [(0, 8, 8, 2), (8, 0, 0, 0)]
    assert shards.split("validation").tokens.tobytes() == b"\xff"
    assert np.sum(train.documents["bytes"]) == train.bytes == 8
