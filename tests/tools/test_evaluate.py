"""One command makes every result and figure of a run, once."""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("constriction", reason="the extra `eval` is not installed")

from data.shards import Shards
from eval import score
from eval.eval_config import ProgramConfig, SweepConfig
from lm.hub.card import model_card
from lm.inference.loading import load_run
from tools import evaluate
from tools.evaluate import EvaluateConfig

CONFIG = EvaluateConfig(
    sweep=SweepConfig(compressed=(0, 4)),
    lanes=2,
    lrs=(1e-3,),
    segments=6,
    compressed_bytes=100,
)


def test_a_score_of_some_documents_is_not_that_of_the_split(
    trained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    part = ProgramConfig(lanes=1, documents=1)
    score.main(run, part, "train", json=run / "score-test.json", compare=False)
    with pytest.raises(
        ValueError, match=r"score-test\.json is of the first documents of the split"
    ):
        evaluate.main([run], tmp_path / "report", CONFIG)
    assert "train[:1]" in model_card(load_run(run), run, "a model", tokenizer=True)


@pytest.mark.slow
def test_everything_is_made_once(trained_run: Path, shards: Shards, tmp_path: Path) -> None:
    run = shutil.copytree(trained_run, tmp_path / "run")
    evaluate.main([run], tmp_path / "report", CONFIG)
    names = ("score-test", "breakdown-validation", "dynamic-test", "dynamic-train", "compress-test")
    files = [run / f"{name}.json" for name in names]
    bits = json.loads(files[-1].read_text())["bits_per_byte"]
    assert bits.keys() == {"this model", "xz -9e", "bzip2 -9", "zstd -22", "brotli -11"}
    text = (tmp_path / "report/report.md").read_text()
    for title in ("Lengths of run", "Dynamic evaluation of run (train)", "Compressed files"):
        assert f"## {title}\n" in text
    made = [file.stat().st_mtime_ns for file in files]
    files[0].unlink()
    evaluate.main([run], tmp_path / "report", CONFIG, shards=[Path(shards.path)])
    assert files[0].exists()
    assert [file.stat().st_mtime_ns for file in files[1:]] == made[1:]
    with pytest.raises(ValueError, match="each of the 1 runs"):
        evaluate.main([run], tmp_path, CONFIG, shards=[])
    with pytest.raises(ValueError, match="at least one folder"):
        evaluate.main([], tmp_path, CONFIG)
