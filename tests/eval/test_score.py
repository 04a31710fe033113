"""The scoring program's record, its table, and the report of a run."""

import bz2
import json
import lzma
from pathlib import Path

import pytest

from data.shards import Shards
from eval import report, score
from eval.protocol import record
from eval.score import ScoreConfig
from lm.loading import load_run
from lm.scoring import Score, ScoringConfig
from tools import plot


def test_the_record_says_everything(
    trained_run: Path, shards: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "score.json"
    score.main(trained_run, ScoreConfig(memory=16, lanes=2), json=file)
    result = json.loads(file.read_text())
    split = shards.split("test")
    assert result["corpus"] == "text" and result["split"] == "test"
    assert result["tokens"] == result["bytes"] == split.bytes
    assert result["value"] == pytest.approx(result["nats"] / result["bytes"] / 0.693147, rel=1e-5)
    assert result["unit"] == "bits_per_byte"
    assert result["protocol"] == {
        "segment": 8,
        "memory": 16,
        "compressed": 4,
        "lanes": 2,
        "warmup": 24,
        "reset_documents": False,
    }
    assert result["shards_hash"] == shards.hash
    assert result["checkpoint"]["name"] == "step-00000012"
    assert len(result["checkpoint"]["sha256"]) == 64
    assert result["model"]["parameters"] > 1000
    text = bytes(split.tokens)
    assert result["compressors"] == {
        "xz -9": 8 * len(lzma.compress(text, preset=9)) / len(text),
        "bzip2 -9": 8 * len(bz2.compress(text, 9)) / len(text),
    }
    shown = capsys.readouterr().out
    assert f"{result['value']:.4f}" in shown and "warmup 24" in shown and "xz -9" in shown


def test_report_and_curve(
    trained_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match=r"eval\.score"):
        report.main(trained_run)
    score.main(
        trained_run, ScoreConfig(lanes=2), json=trained_run / "score-test.json", compare=False
    )
    plot.main(trained_run)
    plot.main(trained_run, beside=[trained_run], out=tmp_path / "both.svg")
    assert (trained_run / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "both.svg").read_bytes()
    capsys.readouterr()
    report.main(trained_run)
    shown = capsys.readouterr().out
    value = json.loads((trained_run / "score-test.json").read_text())["value"]
    assert f"{value:.4f} bits per byte" in shown and "curve.png" in shown and "12 steps" in shown


def test_mistakes(trained_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use train, validation, test"):
        score.main(trained_run, ScoreConfig(), split="tests")
    with pytest.raises(ValueError, match="holds no run"):
        score.main(tmp_path, ScoreConfig())
    with pytest.raises(ValueError, match="too few"):
        score.main(trained_run, ScoreConfig(lanes=10_000))
    with pytest.raises(ValueError, match="train it first"):
        plot.main(tmp_path)


def test_the_record_says_which_words_count(shards: Shards, trained_run: Path) -> None:
    """The split's own, unless it is the full official one."""
    loaded = load_run(trained_run)
    split = shards.split("test")
    assert split.words > 0 and split.denominator_words is None
    result = Score(nats=5000.0, tokens=split.bytes, bytes=split.bytes)
    made = record(loaded, shards, "test", ScoringConfig(), result)
    assert made["words"] == split.words and made["official_words"] is False
    assert made["unit"] == "bits_per_byte" and made["value"] == made["bits_per_byte"]
